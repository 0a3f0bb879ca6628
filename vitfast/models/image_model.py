"""What all models have in common, and what defines one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.field_checks import check_field, check_field_type
from vitfast.models.load_report import LoadReport
from vitfast.models.saved_exits import SavedExits


@dataclass(frozen=True)
class ModelFields:
    """The fields that every family has; a family adds its own.

    Attributes:
        img_size: height and width of the images in pixels.
        in_chans: channels of an image.
        num_classes: outputs of each head; 0 leaves the heads out, and the model returns the pooled channels.

    Raises:
        UserError: a field has a wrong type or value.
    """

    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            check_field_type(type(self), field.name, getattr(self, field.name))
        for name in ("img_size", "in_chans"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check_field(self.num_classes >= 0, "num_classes", self.num_classes, "must be at least 1, or 0 for no head")


class ImageModel(nn.Module):
    """A model from images ``[B, in_chans, img_size, img_size]`` to logits ``[B, num_classes]``.

    In training a model may return several logits: a distilled one a pair, a model with exits one for each exit.

    Args:
        model_name: the name under which ``vitfast.create_model`` builds this model; with ``model_fields`` it is all
            that a checkpoint needs to say.
        fields: everything that defines it.

    Attributes:
        head_prefixes: beginnings of the keys of its heads in the state dict, the main head first.
        num_exits: how many logits ``forward`` returns, in training and in evaluation; 1 for one tensor.
        saved_exits: the thresholds of exits that came with the weights last loaded, None if there were none.
        load_report: what ``create_model`` loaded from its checkpoint, None for a fresh model.
    """

    head_prefixes: ClassVar[tuple[str, ...]] = ("head.",)
    num_exits = 1

    def __init__(self, model_name: str, fields: ModelFields) -> None:
        super().__init__()
        self.model_name = model_name
        self.fields: Any = fields
        self.load_report: LoadReport | None = None
        self.saved_exits: SavedExits | None = None

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields as JSON can hold them: ``create_model(model_name, **model_fields)`` builds the same model."""
        return asdict(self.fields)

    @property
    def num_classes(self) -> int:
        """Outputs of each head."""
        return int(self.fields.num_classes)

    @property
    def img_size(self) -> int:
        """Height and width of the images in pixels."""
        return int(self.fields.img_size)

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return int(self.fields.in_chans)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that, beside the one-dimensional ones, take no weight decay."""
        return set()

    def own_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns weights under this model's keys, where the library that it is from has others."""
        return state

    def resize_state(
        self, state: dict[str, Tensor], position_interpolation: PositionInterpolation | None = None
    ) -> list[str]:
        """Adapts weights of a model for another image size to this one, in place.

        Args:
            state: weights under this model's keys.
            position_interpolation: see ``resize_position_embedding``; None means the model's own.

        Returns:
            The keys that were resized; those that do not fit otherwise stay as they are.
        """
        return []
