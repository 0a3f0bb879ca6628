"""A weights file of any system, with what it does not say about its images taken from options and data."""

# ruff: noqa: RUF009 (option() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import vitfast
from vitfast.config import DataConfig, option
from vitfast.data import available_splits, build_dataset
from vitfast.errors import UserError
from vitfast.evaluation.evaluation_report import EvaluateDataOptions
from vitfast.runs.checkpoint import MANIFEST, list_checkpoints
from vitfast.runs.trained_model import TrainedModel


@dataclass
class ForeignDataOptions(EvaluateDataOptions):
    """Where the images come from, and how they are read; null: as the run was trained, or as is usual."""

    mean: list[float] | None = option(None, "a weights file: mean of each channel, pixels in 0..1", length=[1, 3])
    std: list[float] | None = option(None, "a weights file: standard deviation of each channel", above=0, length=[1, 3])
    resize: str | None = option(
        None, "a weights file: as in python -m vitfast.train", choices=["short_side", "both_sides"]
    )
    interpolation: str | None = option(
        None, "a weights file: how images are resized", choices=["nearest", "bilinear", "bicubic"]
    )
    crop_pct: float | None = option(
        None, "a weights file: share of the resized side that the centre crop keeps", above=0, maximum=1
    )


def is_run(path: str) -> bool:
    """Whether a path is a folder of checkpoints of vitfast, or one of them, rather than another system's weights."""
    folder = Path(path)
    return folder.is_dir() and ((folder / MANIFEST).exists() or bool(list_checkpoints(folder)))


def load_foreign_checkpoint(
    path: str, name: str | None, data: ForeignDataOptions, device: torch.device
) -> TrainedModel:
    """Loads a weights file as if a run had left it.

    Args:
        path: the file, or a folder of Hugging Face.
        name: of the model; None: the file says it.
        data: data set, folder and normalisation; the names of the classes are the data set's.
        device: where the model goes.

    Raises:
        UserError: the file does not fit, there is no data set, or its classes are not as many as the model's.
    """
    if data.dataset is None:
        raise UserError(
            f"checkpoint={path} is a weights file, which names no classes: give data.dataset=image_folder data.root=…, "
            "for example (and data.mean, data.std, if the model was not trained with the usual ones)"
        )
    model = vitfast.create_model(name, checkpoint=path)
    given = {field: value for field, value in vars(data).items() if value is not None}
    settings = DataConfig(**{**given, "img_size": model.img_size, "in_chans": model.in_chans})
    split = available_splits(settings)[0]
    images = build_dataset(settings, split, seed=0, augment=False)
    if len(images.class_names) != model.num_classes:
        raise UserError(
            f"checkpoint={path} knows {model.num_classes} classes, the data in data.root={data.root} have "
            f"{len(images.class_names)}"
        )
    manifest = {
        "model": {"name": model.model_name, "fields": model.model_fields},
        "class_names": list(images.class_names),
        "data": {
            "dataset": settings.dataset,
            "img_size": images.img_size,
            "in_chans": images.in_chans,
            "mean": list(images.mean),
            "std": list(images.std),
            "resize": images.resize,
            "interpolation": images.interpolation,
            "crop_pct": images.crop_pct,
        },
        "step": 0,
    }
    return TrainedModel(model.eval().to(device), Path(path), manifest, "model")
