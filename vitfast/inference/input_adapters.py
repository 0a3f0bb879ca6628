"""Adapters that give an accelerated model the call signature and the outputs of its source."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.ir import CascadeSpec, OutputSpec, TransformerSpec
from vitfast.models.image_model import ImageModel, timm_preprocessing

_HIDDEN = "output_hidden_states"


class ImageAdapter:
    """For models that take images and return tensors: vitfast's, timm's and torchvision's."""

    takes_images = True

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

    def hidden_states_of(self, options: dict[str, Any]) -> Any:
        """Returns which hidden states a call requests: True for all, one index or several; none by default."""
        return None

    def result_of(
        self,
        outputs: tuple[Tensor, ...],
        options: dict[str, Any],
        hidden_states: list[Tensor] | None = None,
        grids: Sequence[tuple[int, int]] = (),
    ) -> Any:
        """Returns the outputs in the form in which the source returns them.

        Args:
            outputs: the results of the readouts.
            options: of the call.
            hidden_states: all hidden states, if they were requested.
            grids: rows and columns of the patches in each of them.
        """
        return outputs if len(outputs) > 1 else outputs[0]


class HuggingFaceAdapter(ImageAdapter):
    """For models that take ``pixel_values`` and return an output class of transformers.

    Args:
        output: the output.
        config: the source's configuration.
        image_size: height and width that the source was configured for.
    """

    def __init__(self, output: OutputSpec, config: Any, image_size: tuple[int, int]) -> None:
        # imported here: torch.compile does not trace imports
        self.output_class = getattr(importlib.import_module(output.module), output.name)
        self.fields = output.fields
        self.tuples = output.tuples
        self.states = output.states
        self.grids = output.grids
        self.config = config
        self.fixed_size = None if output.resizes_always else image_size

    def images_of(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = {name: value for name, value in options.items() if name not in ("return_dict", _HIDDEN)}
        if getattr(self.config, "output_attentions", False):
            raise UserError(
                "the configuration requests output_attentions, which an accelerated model does not return; run the "
                "source model for that"
            )
        if not arguments and "pixel_values" in given:
            arguments = (given.pop("pixel_values"),)
        size = None if given.pop("interpolate_pos_encoding", False) else self.fixed_size
        images = super().images_of(arguments, given)
        if size is not None and isinstance(images, Tensor) and images.dim() == 4 and images.shape[2:] != size:
            raise ValueError(
                f"images must have shape [B, {images.shape[1]}, {size[0]}, {size[1]}], got {list(images.shape)}; "
                "resize them, or pass interpolate_pos_encoding=True"
            )
        return images

    def hidden_states_of(self, options: dict[str, Any]) -> Any:
        requested = options.get(_HIDDEN)
        return getattr(self.config, _HIDDEN, False) if requested is None else requested

    def result_of(
        self,
        outputs: tuple[Tensor, ...],
        options: dict[str, Any],
        hidden_states: list[Tensor] | None = None,
        grids: Sequence[tuple[int, int]] = (),
    ) -> Any:
        named: dict[str, Any] = {name: () for name in self.tuples}
        for name, tensor in zip(self.fields, outputs, strict=True):
            named[name] = (*named[name], tensor) if name in self.tuples else tensor
        if hidden_states is not None:
            indices = self.states or range(len(hidden_states))
            requested = self.hidden_states_of(options)
            named["hidden_states"] = _selected([hidden_states[index] for index in indices], requested)
            as_grids = [hidden_states[index].transpose(1, 2).unflatten(2, grids[index]) for index in self.states]
            named |= dict.fromkeys(self.grids, tuple(as_grids))
        if "cls_logits" in named:
            named = {"logits": (named["cls_logits"] + named["distillation_logits"]) / 2, **named}
        output = self.output_class(**named)
        return_dict = options.get("return_dict")
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()


def _selected(hidden_states: list[Tensor], requested: Any) -> tuple[Tensor | None, ...]:
    """Replaces hidden states that are not requested, an index or several, by None, as transformers does."""
    if requested is True:
        return tuple(hidden_states)
    indices = [requested] if isinstance(requested, int) else list(requested)
    chosen = {index % len(hidden_states) for index in indices if -len(hidden_states) <= index < len(hidden_states)}
    return tuple(state if index in chosen else None for index, state in enumerate(hidden_states))


def input_adapter(model: nn.Module, spec: TransformerSpec | CascadeSpec) -> ImageAdapter:
    """Returns the adapter of a recognised source model."""
    if isinstance(spec, CascadeSpec) or spec.output is None:
        return ImageAdapter()
    return HuggingFaceAdapter(spec.output, model.config, spec.embedding.patches.image_size)


def source_attributes(model: nn.Module, *, normalizes: bool) -> dict[str, Callable[[], Any]]:
    """Returns the attributes of a source model by which its library knows it, and that it has, as functions.

    Args:
        model: the source model.
        normalizes: whether the accelerated model normalizes images itself; ``pretrained_cfg`` then has mean 0, std 1.
    """
    names = [name for name in ("config", "num_classes", "num_features", "class_names") if hasattr(model, name)]
    attributes: dict[str, Callable[[], Any]] = {name: partial(_same, getattr(model, name)) for name in names}
    settings: Callable[[], Any] | None = None
    if isinstance(model, ImageModel) and model.stored_preprocessing is None:
        settings = partial(timm_preprocessing, model.model_name, (model.in_chans, model.img_size))
    elif hasattr(model, "pretrained_cfg"):
        settings = partial(_same, model.pretrained_cfg)
    if settings is not None:
        settings = partial(_without_normalization, settings) if normalizes else settings
        attributes |= {"pretrained_cfg": settings, "default_cfg": settings}
    return attributes


def _same(value: Any) -> Any:
    return value


def _without_normalization(settings: Callable[[], Any]) -> Any:
    found = settings()
    return found and {**found, "mean": (0.0,) * len(found["mean"]), "std": (1.0,) * len(found["std"])}
