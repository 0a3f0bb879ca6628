"""torchvision's classifiers, as teachers and for comparison."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.models.image_model import ImageModel
from vitfast.models.model_fields import ModelFields, check_field

PREFIX = "torchvision/"
_NETWORK = "network."


@dataclass(frozen=True)
class TorchvisionFields(ModelFields):
    """The options of a torchvision network: the number of classes and the image size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self.in_chans == 3, "in_chans", self.in_chans, "must be 3 for torchvision's networks")
        self._check_at_least(1, "num_classes")


class TorchvisionModel(ImageModel):
    """One of torchvision's classifiers, ``torchvision/resnet50`` for example, with random weights.

    The auxiliary heads of GoogLeNet and Inception are left out, so that every network returns one tensor of logits.
    Weights load under torchvision's keys.

    Args:
        model_name: ``torchvision/`` and the name of a classifier.
        fields: number of classes and image size.

    Raises:
        UserError: torchvision refuses the image size.
    """

    fields: TorchvisionFields

    def __init__(self, model_name: str, fields: TorchvisionFields) -> None:
        super().__init__(model_name, fields)
        import torchvision  # imported here, because it takes longer than importing all of vitfast

        builder = torchvision.models.get_model_builder(model_name.removeprefix(PREFIX))
        options: dict[str, object] = {"num_classes": fields.num_classes}
        if "image_size" in inspect.signature(builder).parameters or model_name.startswith(f"{PREFIX}vit_"):
            options["image_size"] = fields.img_size
        if model_name in (f"{PREFIX}googlenet", f"{PREFIX}inception_v3"):
            options |= {"aux_logits": False, "init_weights": True}
        try:
            self.network: nn.Module = builder(weights=None, **options)
        except (ValueError, AssertionError) as error:
            raise UserError(f"{model_name} with img_size={fields.img_size}: {error}") from error
        # the last layer with weights is the head: fc, classifier.6, heads.head, … (a convolution in SqueezeNet)
        layers = [name for name, layer in self.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        self.head_prefixes = (f"{layers[-1]}.",)  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images ``[B, 3, img_size, img_size]``; returns logits ``[B, num_classes]``."""
        logits: Tensor = self.network(images)
        return logits

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the prefix ``network`` to torchvision's keys."""
        return {key if key.startswith(_NETWORK) else _NETWORK + key: tensor for key, tensor in state.items()}
