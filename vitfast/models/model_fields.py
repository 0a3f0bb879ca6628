"""The fields that define a model: those of every family, and those of transformers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation

_type_hints = functools.cache(get_type_hints)  # hundreds of fields are checked on import


def check_field(holds: bool, name: str, value: Any, rule: str) -> None:
    """Raises UserError with the field's name, the rule and the value unless the rule ``holds``."""
    if not holds:
        raise UserError(f"{name} {rule}; got {value!r}")


def check_field_type(owner: type, name: str, value: Any) -> None:
    """Checks a value against its annotation in ``owner``: int, float, bool, a Literal or ``tuple[int, ...]``.

    Raises:
        UserError: the value has another type, or is not one of the literals.
    """
    hint = _type_hints(owner)[name]
    if get_origin(hint) is Literal:
        check_field(value in get_args(hint), name, value, f"must be one of {', '.join(map(repr, get_args(hint)))}")
    elif hint is bool:
        check_field(isinstance(value, bool), name, value, "must be True or False")
    elif hint is int:
        check_field(isinstance(value, int) and not isinstance(value, bool), name, value, "must be a whole number")
    elif get_origin(hint) is tuple:
        are_whole = isinstance(value, tuple) and all(type(part) is int for part in value)
        check_field(are_whole, name, value, "must be a list of whole numbers")
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        check_field(is_number and math.isfinite(value), name, value, "must be a finite number")


@dataclass(frozen=True)
class ModelFields:
    """The fields that every family has; a family adds others.

    Attributes:
        img_size: height and width of the images in pixels.
        in_chans: channels of an image.
        num_classes: outputs of each head; 0: no heads, the model returns the pooled channels.

    Raises:
        UserError: a field has a wrong type or value.
    """

    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            check_field_type(type(self), field.name, getattr(self, field.name))
        self._check_at_least(1, "img_size", "in_chans")
        check_field(self.num_classes >= 0, "num_classes", self.num_classes, "must be at least 1, or 0 for no head")

    def _to_tuples(self, *names: str) -> None:
        """Converts lists, which JSON and the command line give, to tuples."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))

    def _check_at_least(self, minimum: int, *names: str) -> None:
        for name in names:
            check_field(getattr(self, name) >= minimum, name, getattr(self, name), f"must be at least {minimum}")

    def _check_multiple(self, name: str, divisor_name: str) -> None:
        value, divisor = getattr(self, name), getattr(self, divisor_name)
        below = value // divisor * divisor
        if below != value:
            rule = f"is not a multiple of {divisor_name}={divisor}"
            nearest = f"{below} or {below + divisor}" if below else f"{divisor}"
            raise UserError(f"{name}={value} {rule}; the nearest {name} that works: {nearest}")

    def _check_rates(self, *names: str) -> None:
        for name in names:
            rate = getattr(self, name)
            check_field(0.0 <= rate < 1.0, name, rate, "must be at least 0 and below 1, a probability")


@dataclass(frozen=True)
class TransformerFields(ModelFields):
    """The fields of a stack of transformer blocks.

    Attributes:
        img_size, in_chans, num_classes: as in ``ModelFields``.
        embed_dim: channels of a token, a multiple of ``num_heads``.
        depth: number of transformer blocks.
        num_heads: attention heads of a block.
        mlp_ratio: hidden width of an MLP as a multiple of ``embed_dim``.
        layer_norm_eps: epsilon of every LayerNorm.
        qkv_bias: whether q, k and v have biases.
        position_interpolation: how checkpoints are adapted to another image size, see ``resize_position_embedding``.
        drop_rate: dropout of the embedded tokens, the attention projections and the MLPs.
        attention_drop_rate: dropout of the attention probabilities.
        drop_path: stochastic depth rate of the last block; it grows linearly from 0 at the first.

    Raises:
        UserError: a field has a wrong type or value.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    position_interpolation: PositionInterpolation = "bicubic"
    drop_rate: float = 0.0
    attention_drop_rate: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "embed_dim", "depth", "num_heads")
        self._check_multiple("embed_dim", "num_heads")
        check_field(
            self.layer_norm_eps > 0.0, "layer_norm_eps", self.layer_norm_eps, "must be above 0, for example 1e-6"
        )
        check_field(
            self.mlp_dim >= 1, "mlp_ratio", self.mlp_ratio, f"must be at least {1 / self.embed_dim:g} (1 / embed_dim)"
        )
        self._check_rates("drop_rate", "attention_drop_rate", "drop_path")

    @property
    def mlp_dim(self) -> int:
        """Hidden width of an MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    def block_options(self, index: int) -> dict[str, Any]:
        """The options of a ``Block``; the stochastic depth rate grows from the first to the last."""
        options: dict[str, Any] = {
            name: getattr(self, name) for name in ("qkv_bias", "layer_norm_eps", "drop_rate", "attention_drop_rate")
        }
        return options | {"drop_path": self.drop_path * index / max(self.depth - 1, 1)}
