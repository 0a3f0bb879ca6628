"""``load_state`` fills a model with weights; ``LoadReport`` says what was loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.saved_exits import SavedExits

_HIDDEN_LAYER = "pre_logits."  # the layer before a head; a head is replaced together with it
_LISTED_KEYS = 20


@dataclass(frozen=True)
class LoadReport:
    """What was loaded into a model, and what was not; ``print`` it to read it.

    Attributes:
        source: the file or folder that was read.
        model_name: name of the model that was filled.
        family: the checkpoint's format, ``"Google"`` for example.
        fields: the model fields that ``create_model`` took from the file or its format.
        loaded: keys of the model that were loaded, including the resized ones.
        missing: keys of the model that the file lacks; they keep their values.
        unexpected: keys of the file that the model does not have.
        mismatched: keys with different shapes in file and model, with both shapes; they keep their values.
        resized: keys that were resampled for another image size.
        position_interpolation: how they were resampled, None if nothing was.
        skipped: what is intentionally not loaded: layers that no model has and entries that are no weights, under
            the file's names; a head that cannot be used, under the model's.
        fresh: keys of the heads that stay newly initialized.
        exits: the thresholds of exits in the file, None if there were none.
    """

    source: str
    model_name: str
    family: str = "vitfast"
    fields: Mapping[str, Any] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    position_interpolation: str | None = None
    skipped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    exits: SavedExits | None = None

    def __str__(self) -> str:
        lines = [f"{self.model_name}: {len(self.loaded)} tensors loaded from {self.source} ({self.family})"]
        if self.fields:
            fields = ", ".join(f"{name}={value!r}" for name, value in sorted(self.fields.items()))
            lines.append(f"  fields from the file and its format: {fields}")
        if self.exits is not None:
            lines.append(f"  exit thresholds: {self.exits}")
        how = f" ({self.position_interpolation})" if self.position_interpolation else ""
        for title, keys in (
            (f"resized{how}", self.resized),
            ("fresh", self.fresh),
            ("skipped", self.skipped),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("other shape", self.mismatched),
        ):
            if keys:
                lines.append(f"  {title}: {_list_keys(keys)}")
        return "\n".join(lines)


def load_state(
    model: ImageModel,
    state: dict[str, Tensor],
    *,
    source: str,
    unmatched: Sequence[str] = (),
    may_resize: bool = False,
    may_replace_head: bool = False,
    strict: bool = True,
    position_interpolation: PositionInterpolation | None = None,
) -> LoadReport:
    """Loads weights in place. Every key and shape must fit, except where the arguments allow otherwise.

    Args:
        model: the model to fill; an error leaves it unchanged.
        state: weights under canonical keys (timm's, for a ViT).
        source: the file, for messages.
        unmatched: further keys of the file that no model has.
        may_resize: adapt weights for another image size, see ``ImageModel.resize_state``.
        may_replace_head: keep the model's heads where the number of classes, or the width of the layer before them,
            differs.
        strict: whether missing, unexpected and misshapen keys are an error; otherwise they are reported.
        position_interpolation: see ``ImageModel.resize_state``.

    Raises:
        UserError: keys are missing, unexpected or misshapen, and ``strict``; the message lists them.
    """
    state = dict(model.adapt_state(state))
    own = model.state_dict()
    resized = model.resize_state(state, position_interpolation) if may_resize else []

    skipped: list[str] = []
    fresh: list[str] = []
    if may_replace_head and _head_sizes(state, model) != _head_sizes(own, model):
        heads = (*model.head_prefixes, _HIDDEN_LAYER)
        skipped = [key for key in state if key.startswith(heads)]
        fresh = [key for key in own if key.startswith(heads)]
        for key in skipped:
            del state[key]

    missing = sorted(own.keys() - state.keys() - set(fresh))
    unexpected = [*sorted(state.keys() - own.keys()), *unmatched]
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    shapes = [f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}" for key in misshapen]
    if strict and (missing or unexpected or misshapen):
        problems = [
            f"{kind}: {_list_keys(keys)}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
            if keys
        ]
        only_positions = misshapen and all(key.split(".")[-1] == "pos_embed" for key in misshapen)
        advice = "; give img_size to resize the position embeddings" if only_positions else ""
        raise UserError(f"{source} does not fit {model.model_name}; {'; '.join(problems)}{advice}")
    loaded = {key: state[key] for key in own if key in state and key not in misshapen}
    for key, tensor in loaded.items():
        # integers are weights that another tool quantized, useless without its scales; a BatchNorm counts batches
        if not tensor.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise UserError(f"{source}: {key} holds {tensor.dtype}, not floating-point numbers; save it in float32")
    model.load_state_dict(loaded, strict=False)
    return LoadReport(
        source=source,
        model_name=model.model_name,
        loaded=tuple(loaded),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(shapes),
        resized=tuple(resized),
        skipped=tuple(skipped),
        fresh=tuple(fresh),
    )


def _head_sizes(state: dict[str, Tensor], model: ImageModel) -> list[int]:
    """Returns the outputs of a head and of the layer before it, 0 where there is none."""
    weights = (state.get(f"{name}weight") for name in (model.head_prefixes[0], f"{_HIDDEN_LAYER}fc."))
    return [0 if weight is None or weight.dim() == 0 else len(weight) for weight in weights]


def _list_keys(keys: Sequence[str]) -> str:
    """Joins at most ``_LISTED_KEYS`` keys for a message."""
    more = len(keys) - _LISTED_KEYS
    return ", ".join(keys[:_LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")
