"""How a model preprocesses images: the settings that timm, transformers and vitfast's checkpoints record."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from vitfast.errors import UserError

_RESIZE = {"center": "short_side", "squash": "both_sides"}  # timm's crop modes
_INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # of PIL


def preprocessing_settings(model: nn.Module) -> dict[str, Any] | None:
    """Returns the arguments of ``eval_transform`` for a model; None if it does not know its preprocessing."""
    settings = getattr(model, "pretrained_cfg", None)
    if settings:
        return _of_timm(dict(settings))
    if getattr(getattr(model, "config", None), "_name_or_path", ""):
        return _of_transformers(model)
    return None


def timm_settings_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of ``preprocessing_settings`` in the form of timm's ``pretrained_cfg``."""
    side = settings["img_size"]
    modes = {resize: mode for mode, resize in _RESIZE.items()}
    return {
        "input_size": (settings["in_chans"], side, side),
        "mean": tuple(settings["mean"]),
        "std": tuple(settings["std"]),
        "interpolation": settings["interpolation"],
        "crop_pct": settings["crop_pct"],
        "crop_mode": modes[settings["resize"]],
    }


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
