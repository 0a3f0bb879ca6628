"""Adapters that give an accelerated model the call signature and the outputs of its source."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.lowering.huggingface_models import family_of


class ImageAdapter:
    """For models that take images and return tensors: vitfast's, timm's and torchvision's."""

    def images_of(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Returns the images among the arguments of a call.

        Raises:
            UserError: there are other arguments.
        """
        given = dict(options)
        images = arguments[0] if arguments else next((given.pop(n) for n in ("images", "x") if n in given), None)
        refused = [str(value) for value in arguments[1:] if value not in (None, False)]
        refused += [name for name, value in given.items() if value is not None and value is not False]
        if refused:
            raise UserError(
                f"an accelerated model takes images only, and was given {', '.join(refused)}; run the source model "
                "for that"
            )
        return images

    def result_of(self, outputs: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        """Returns the outputs in the form in which the source returns them."""
        return outputs if len(outputs) > 1 else outputs[0]


class HuggingFaceAdapter(ImageAdapter):
    """For models that take ``pixel_values`` and return an output class of transformers.

    Args:
        output_class: module and name of the class.
        fields: fields of the output, in the order of the readouts.
        config: the source's configuration.
    """

    def __init__(self, output_class: tuple[str, str], fields: tuple[str, ...], config: Any) -> None:
        module, name = output_class
        # imported here: torch.compile does not trace imports
        self.output_class = getattr(importlib.import_module(module), name)
        self.fields = fields
        self.config = config

    def images_of(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = {name: value for name, value in options.items() if name != "return_dict"}
        unsupported = [
            name for name in ("output_attentions", "output_hidden_states") if getattr(self.config, name, False)
        ]
        if unsupported:
            raise UserError(
                f"the configuration requests {', '.join(unsupported)}, which an accelerated model does not return; run "
                "the source model for that"
            )
        if not arguments and "pixel_values" in given:
            arguments = (given.pop("pixel_values"),)
        return super().images_of(arguments, given)

    def result_of(self, outputs: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        named = dict(zip(self.fields, outputs, strict=True))
        if "cls_logits" in named:
            named = {"logits": (named["cls_logits"] + named["distillation_logits"]) / 2, **named}
        output = self.output_class(**named)
        return_dict = options.get("return_dict")
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()


def input_adapter(model: nn.Module) -> ImageAdapter:
    """Returns the adapter of a source model that was recognised as a whole."""
    family = family_of(model)
    if family is None:
        return ImageAdapter()
    outputs = "transformers.modeling_outputs"
    config: Any = model.config
    if type(model).__name__.endswith("ForImageClassificationWithTeacher"):
        fields = ("cls_logits", "distillation_logits")
        return HuggingFaceAdapter((family.module, f"{type(model).__name__}Output"), fields, config)
    if type(model).__name__.endswith("ForImageClassification"):
        return HuggingFaceAdapter((outputs, "ImageClassifierOutput"), ("logits",), config)
    is_pooled = getattr(model, "pooler", "DINOv2") is not None
    both = ("last_hidden_state", "pooler_output")
    return HuggingFaceAdapter((outputs, "BaseModelOutputWithPooling"), both if is_pooled else both[:1], config)
