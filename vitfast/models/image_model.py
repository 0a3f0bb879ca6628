"""``ImageModel``, the base class of all models."""

from __future__ import annotations

import importlib
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vitfast.layers.position_embedding import PositionInterpolation, resize_position_embedding
from vitfast.models.model_fields import ModelFields
from vitfast.models.saved_exits import SavedExits

if TYPE_CHECKING:
    from vitfast.models.load_report import LoadReport


class ImageModel(nn.Module):
    """A model from images ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``.

    In training a model may return several logits: a distilled one a pair, a model with exits one per exit.

    Args:
        model_name: the name under which ``vitfast.create_model`` builds this model. A checkpoint stores it with
            ``model_fields``.
        fields: the fields that define the model.

    Attributes:
        head_prefixes: prefixes of the heads' keys in the state dict, the main head first.
        num_exits: how many logits ``forward`` returns, in training and in evaluation; 1 for one tensor.
        saved_exits: the exit thresholds of the last loaded checkpoint, None if it had none.
        load_report: what ``create_model`` loaded from its checkpoint, None for a newly initialized model.
        stored_preprocessing: how images are preprocessed for the loaded weights, as timm's ``pretrained_cfg``; None
            where the checkpoint does not say.
    """

    head_prefixes: ClassVar[tuple[str, ...]] = ("head.",)
    num_exits = 1

    def __init__(self, model_name: str, fields: ModelFields) -> None:
        super().__init__()
        self.model_name = model_name
        self.fields: Any = fields
        self.load_report: LoadReport | None = None
        self.saved_exits: SavedExits | None = None
        self.stored_preprocessing: dict[str, Any] | None = None

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields in JSON types: ``create_model(model_name, **model_fields)`` builds the same model."""
        return asdict(self.fields)

    @property
    def num_classes(self) -> int:
        """Outputs of each head."""
        return int(self.fields.num_classes)

    @property
    def pretrained_cfg(self) -> dict[str, Any] | None:
        """How images are preprocessed, as timm's: ``stored_preprocessing``, else timm's default for the model's name.

        None if neither is known, or the latter needs timm and it is not installed.
        """
        return self.stored_preprocessing or timm_preprocessing(self.model_name, (self.in_chans, self.img_size))

    @pretrained_cfg.setter
    def pretrained_cfg(self, settings: dict[str, Any] | None) -> None:
        self.stored_preprocessing = settings

    @property
    def default_cfg(self) -> dict[str, Any] | None:
        """The same as ``pretrained_cfg``, as in timm."""
        return self.pretrained_cfg

    @property
    def img_size(self) -> int:
        """Height and width of the images in pixels."""
        return int(self.fields.img_size)

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return int(self.fields.in_chans)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, beside the one-dimensional ones, that take no weight decay."""
        return set()

    def position_keys(self) -> dict[str, int]:
        """Keys of the position embeddings ``[1, T + G * G, C]``, with T, the number of tokens before the patches."""
        return {}

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Converts weights under canonical keys and layouts to this model's."""
        return state

    def resize_state(
        self, state: dict[str, Tensor], position_interpolation: PositionInterpolation | None = None
    ) -> list[str]:
        """Resamples the position embeddings of another image size to this model's grid, in place.

        Args:
            state: weights under this model's keys.
            position_interpolation: see ``resize_position_embedding``; None: the model's field.

        Returns:
            The keys that were resized. Weights that differ in other ways stay unchanged.
        """
        resized = []
        for key, num_prefix_tokens in self.position_keys().items():
            saved, positions = state.get(key), self.get_parameter(key)  # [1, T + g * g, C], [1, T + G * G, C]
            if saved is None or saved.shape == positions.shape:
                continue
            if saved.dim() != 3 or saved.shape[::2] != positions.shape[::2]:
                continue  # other channels: weights of another architecture
            grid_size = math.isqrt(positions.shape[1] - num_prefix_tokens)
            interpolation = position_interpolation or self.fields.position_interpolation
            try:
                state[key] = resize_position_embedding(
                    saved, grid_size, num_prefix_tokens=num_prefix_tokens, interpolation=interpolation
                )
            except ValueError:  # the number of patches is not square
                continue
            resized.append(key)
        return resized


def timm_preprocessing(name: str, sizes: tuple[int, int]) -> dict[str, Any] | None:
    """Returns timm's default ``pretrained_cfg`` of a name for ``(in_chans, img_size)``; None if there is none."""
    try:
        timm: Any = importlib.import_module("timm")  # only when it is asked for: timm takes seconds to load
        settings = timm.get_pretrained_cfg(name.partition("/")[2] or name)
    except (ImportError, RuntimeError):
        return None
    return None if settings is None else {**settings.to_dict(), "input_size": (sizes[0], sizes[1], sizes[1])}
