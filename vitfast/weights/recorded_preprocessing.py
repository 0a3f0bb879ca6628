"""The preprocessing of images that timm and Hugging Face record in files beside weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitfast.errors import UserError
from vitfast.files import read_text
from vitfast.weights.manifest import check_preprocessing

PROCESSOR_FILE, NESTED_PROCESSOR_FILE, TIMM_FILE = "preprocessor_config.json", "processor_config.json", "config.json"
_INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # of PIL


def recorded_preprocessing(folder: Path) -> dict[str, Any] | None:
    """Reads a folder's ``preprocessor_config.json``, ``processor_config.json``, or timm's ``config.json``.

    A preprocessing with steps that vitfast does not have is left out, with a warning.

    Returns:
        The preprocessing as timm's ``pretrained_cfg``; None if the folder records none.

    Raises:
        UserError: a file is damaged, or has values that no images can have.
    """
    for name in (PROCESSOR_FILE, NESTED_PROCESSOR_FILE, TIMM_FILE):
        file = folder / name
        if not file.exists():
            continue
        try:
            record = json.loads(read_text(file))
            processor = record.get("image_processor") if name == NESTED_PROCESSOR_FILE else record
            if processor is None:  # a text processor's
                continue
            settings = processor.get("pretrained_cfg") if name == TIMM_FILE else _of_processor(file, processor)
            if settings is not None:
                check_timm_settings(file, settings)
                return {"interpolation": "bicubic", **settings}
            if name != TIMM_FILE:
                return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{file} is no preprocessing of images ({reason}); fix it, or move it elsewhere") from error
    return None


def check_timm_settings(file: Path, settings: Any) -> None:
    """Raises CheckpointError, ValueError or TypeError for a ``pretrained_cfg`` that no images can have."""
    channels, height, width = settings["input_size"]
    sizes = {"in_chans": channels, "img_size": height, "mean": settings["mean"], "std": settings["std"]}
    check_preprocessing(file, {**sizes, "crop_pct": settings.get("crop_pct") or 1.0}, "pretrained_cfg.")
    check_preprocessing(file, {"img_size": width}, "pretrained_cfg.")
    for name in ("mean", "std"):
        if len(settings[name]) not in (1, channels):
            raise ValueError(f"{name} has {len(settings[name])} numbers for {channels} channels")
    if not all(isinstance(settings.get(name), str | None) for name in ("crop_mode", "interpolation")):
        raise TypeError("a mode that is no name")


def _of_processor(file: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Converts the settings of an image processor of transformers; None, with a warning, if that is impossible."""
    kind = str(record.get("image_processor_type") or record.get("feature_extractor_type") or "")
    # an integer is the short side for CLIP, and both sides for ViT and DeiT
    size = _sides(record["size"], "shortest_edge" if "CLIP" in kind else "height")
    crop = _sides(record.get("crop_size"), "height") if record.get("do_center_crop", "CLIP" in kind) else {}
    resized = size.get("shortest_edge", size.get("height"))
    sides = set((crop or size).values())
    interpolation = _INTERPOLATION.get(record.get("resample", -1))
    is_plain = record.get("do_resize", True) and record.get("do_rescale", True)
    is_plain = is_plain and abs(record.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
    if not is_plain or interpolation is None or len(sides) != 1 or not resized or max(sides) > resized:
        warnings.warn(f"{file}: this preprocessing is not supported; set data.mean, data.std, …", stacklevel=2)
        return None
    (side,) = sides
    normalizes = record.get("do_normalize", True)
    mean, std = (record["image_mean"], record["image_std"]) if normalizes else ([0.0], [1.0])
    return {
        "input_size": (3 if len(mean) == 1 else len(mean), side, side),
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "crop_pct": side / resized,
        "crop_mode": "center" if "shortest_edge" in size else "squash",
    }


def _sides(size: Any, single: str) -> dict[str, int]:
    """Returns a size as transformers writes it now: ``shortest_edge``, or ``height`` and ``width``."""
    if isinstance(size, int):
        return {single: size} if single == "shortest_edge" else {"height": size, "width": size}
    return dict(size)
