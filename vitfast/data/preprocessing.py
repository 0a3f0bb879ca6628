"""The preprocessing of images that a model was trained with."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn
from torchvision.transforms import v2

from vitfast.data.transforms import eval_transform
from vitfast.errors import UserError

_RESIZE = {"center": "short_side", "squash": "both_sides"}  # timm's crop modes
_INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # of PIL


def preprocessing(model: nn.Module) -> v2.Compose:
    """Builds the transform from a PIL image to the model's input: resize, centre crop, normalize.

    Args:
        model: a model of timm (also ``timm/NAME``), one of vitfast created with ``pretrained=True`` or from a run, or
            of a name that timm has, one of transformers that was loaded by ``from_pretrained``, or an accelerated one
            of these.

    Returns:
        A transform of ``torchvision.transforms.v2``; its result is ``[C, H, W]``, float32.

    Raises:
        UserError: the model does not know its preprocessing, or it has steps that are not supported.
    """
    arguments = preprocessing_settings(model)
    if arguments is None:
        raise UserError(
            f"this {type(model).__name__} does not know its preprocessing: it was not created with pretrained=True, or "
            "loaded by from_pretrained; build it with vitfast.data.transforms.eval_transform"
        )
    transform: Any = eval_transform(**arguments)
    return transform


def preprocessing_settings(model: nn.Module) -> dict[str, Any] | None:
    """Returns the arguments of ``eval_transform`` for a model; None if it does not know its preprocessing."""
    settings = getattr(model, "pretrained_cfg", None)
    if settings:
        return _of_timm(dict(settings))
    if getattr(getattr(model, "config", None), "_name_or_path", ""):
        return _of_transformers(model)
    return None


def _of_timm(settings: dict[str, Any]) -> dict[str, Any]:
    channels, height, width = settings["input_size"]
    resize = _RESIZE.get(settings.get("crop_mode") or "center")
    if height != width or resize is None or settings["interpolation"] not in _INTERPOLATION.values():
        raise UserError(
            f"the preprocessing with input_size={settings['input_size']}, crop_mode={settings.get('crop_mode')!r} and "
            f"interpolation={settings['interpolation']!r} is not supported; use timm.data.create_transform"
        )
    return {
        "img_size": height,
        "in_chans": channels,
        "mean": settings["mean"],
        "std": settings["std"],
        "interpolation": settings["interpolation"],
        "crop_pct": settings.get("crop_pct") or 0.875,
        "resize": resize,
    }


def _of_transformers(model: Any) -> dict[str, Any]:
    transformers: Any = importlib.import_module("transformers")
    name = model.config._name_or_path
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} has no image processor: {str(error).splitlines()[0]}") from error
    size, crop = dict(processor.size), getattr(processor, "crop_size", None) if processor.do_center_crop else None
    interpolation = _INTERPOLATION.get(int(processor.resample))
    sides = set((dict(crop) if crop else size).values())
    is_plain = processor.do_resize and processor.do_rescale and abs(processor.rescale_factor * 255 - 1) < 1e-6
    if not is_plain or interpolation is None or len(sides) != 1 or not {"height", "shortest_edge"} & size.keys():
        raise UserError(f"the preprocessing of {name} is not supported; use its AutoImageProcessor")
    (side,) = sides
    return {
        "img_size": side,
        "in_chans": getattr(model.config, "num_channels", 3),
        "mean": processor.image_mean if processor.do_normalize else (0.0,),
        "std": processor.image_std if processor.do_normalize else (1.0,),
        "interpolation": interpolation,
        "crop_pct": side / size.get("shortest_edge", size.get("height")),
        "resize": "short_side" if "shortest_edge" in size else "both_sides",
    }
