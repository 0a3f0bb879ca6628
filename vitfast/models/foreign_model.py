"""Classifiers of timm and torchvision under vitfast's interface."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from vitfast.errors import UserError, import_optional
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.model_fields import ModelFields, check_field

TIMM, TORCHVISION = "timm/", "torchvision/"  # prefixes of names
_NETWORK = "network."


@dataclass(frozen=True)
class TorchvisionFields(ModelFields):
    """The options of a torchvision network: the number of classes and the image size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self.in_chans == 3, "in_chans", self.in_chans, "must be 3 for torchvision's networks")


@dataclass(frozen=True)
class TimmFields(ModelFields):
    """The options of a timm network.

    Attributes:
        img_size, in_chans, num_classes: as in ``ModelFields``.
        drop_rate: timm's option of that name; 0: the network's default.
        drop_path: timm's ``drop_path_rate``; 0: the network's default.
    """

    drop_rate: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_rates("drop_rate", "drop_path")


class ForeignModel(ImageModel):
    """A classifier of timm or torchvision, ``timm/convnext_tiny`` for example, with random weights.

    Weights load under the keys of the library. The auxiliary heads of torchvision's GoogLeNet and Inception are left
    out, so that every network returns one tensor of logits.

    Args:
        model_name: ``timm/`` or ``torchvision/``, and the library's name.
        fields: of that library.

    Attributes:
        takes_any_size: whether the network takes images of other sizes than ``img_size``.

    Raises:
        UserError: the library refuses the image size or another field.
    """

    def __init__(self, model_name: str, fields: TimmFields | TorchvisionFields) -> None:
        super().__init__(model_name, fields)
        name = model_name.partition("/")[2]
        if isinstance(fields, TimmFields):
            builder, options = _timm_builder(name, fields)
        else:
            builder, options = _torchvision_builder(name, fields)
        self.takes_any_size = not {"img_size", "image_size"} & options.keys()
        try:
            self.network: nn.Module = builder(**options)
        except (TypeError, ValueError, AssertionError) as error:
            given = ", ".join(f"{option}={value}" for option, value in options.items())
            raise UserError(f"{model_name} with {given}: {error}") from error
        settings: dict[str, Any] | None = getattr(self.network, "pretrained_cfg", None)
        if settings is not None:
            self.pretrained_cfg = {**settings, "input_size": (fields.in_chans, fields.img_size, fields.img_size)}
        heads = (settings or {}).get("classifier")
        if not heads:
            # the last layer with weights is the head: fc, classifier.6, heads.head, … (a convolution in SqueezeNet)
            heads = [name for name, layer in self.network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
            heads = heads[-1]
        heads = (heads,) if isinstance(heads, str) else heads
        self.head_prefixes = tuple(f"{_NETWORK}{head}." for head in heads)  # type: ignore[misc]
        if not fields.num_classes:
            for head in heads:
                self.network.set_submodule(head, nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images ``[B, in_chans, img_size, img_size]``; returns logits ``[B, num_classes]`` or features."""
        logits: Tensor = self.network(images)
        return logits

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the prefix ``network`` to the library's keys."""
        return {key if key.startswith(_NETWORK) else _NETWORK + key: tensor for key, tensor in state.items()}

    def resize_state(
        self, state: dict[str, Tensor], position_interpolation: PositionInterpolation | None = None
    ) -> list[str]:
        """Resamples what depends on the image size with timm's own function, in place; torchvision has none."""
        if not isinstance(self.fields, TimmFields):
            return []
        import timm

        module = inspect.getmodule(timm.model_entrypoint(self.model_name.removeprefix(TIMM)))
        convert = getattr(module, "checkpoint_filter_fn", None)
        if convert is None:
            return []
        try:
            converted = convert({key.removeprefix(_NETWORK): tensor for key, tensor in state.items()}, self.network)
        except Exception:  # weights of another architecture, which the caller reports
            return []
        before = dict(state)
        state.clear()
        state.update(self.adapt_state(converted))
        return [key for key, tensor in state.items() if key in before and before[key].shape != tensor.shape]


def foreign_names(name: str) -> list[str] | None:
    """Lists the names of the library that a name's prefix stands for; None for a name of vitfast.

    Raises:
        UserError: timm is not installed.
    """
    if name.startswith(TIMM):
        return [TIMM + one for one in import_optional("timm", name).list_models()]
    if name.startswith(TORCHVISION):
        import torchvision  # imported here, because it takes longer than importing all of vitfast

        return [TORCHVISION + one for one in torchvision.models.list_models(module=torchvision.models)]
    return None


def default_fields(name: str) -> TimmFields | TorchvisionFields:
    """Returns the fields of a network of ``foreign_names``."""
    if name.startswith(TORCHVISION):
        return TorchvisionFields()
    settings = timm_settings(name)
    in_chans, img_size, _ = settings.input_size
    return TimmFields(img_size=img_size, in_chans=in_chans, num_classes=settings.num_classes)


def timm_settings(name: str) -> Any:
    """Returns timm's ``PretrainedCfg`` of ``timm/NAME`` or ``timm/NAME.TAG``.

    Raises:
        UserError: timm has no such tag.
    """
    try:
        settings = import_optional("timm", name).get_pretrained_cfg(name.removeprefix(TIMM))
    except RuntimeError as error:
        raise UserError(f"{name}: {error}") from error
    return settings


def _timm_builder(name: str, fields: TimmFields) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {"num_classes": fields.num_classes, "in_chans": fields.in_chans}
    if timm_settings(name).fixed_input_size:
        options["img_size"] = fields.img_size
    rates = {"drop_rate": fields.drop_rate, "drop_path_rate": fields.drop_path}
    options |= {option: rate for option, rate in rates.items() if rate}
    return partial(import_optional("timm", name).create_model, name), options


def _torchvision_builder(name: str, fields: TorchvisionFields) -> tuple[Any, dict[str, Any]]:
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    options: dict[str, Any] = {"num_classes": max(fields.num_classes, 1)}  # torchvision has no networks without head
    if "image_size" in inspect.signature(builder).parameters or name.startswith("vit_"):
        options["image_size"] = fields.img_size
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    return builder, options
