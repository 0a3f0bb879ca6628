"""The images of a checkpoint: the splits that its run used, or those given for another system's weights file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import vitfast
from vitfast.config import DataConfig, load_config
from vitfast.config.data_schema import EvaluateDataOptions, ForeignDataOptions
from vitfast.data import ImageDataset, available_splits, build_dataset, build_loader
from vitfast.errors import UserError, explain_os_error
from vitfast.files import read_text
from vitfast.models.preprocessing_settings import preprocessing_settings
from vitfast.runs.run_directory import CONFIG
from vitfast.runs.trained_model import PREPROCESSING, TrainedModel
from vitfast.weights.checkpoint import list_checkpoints
from vitfast.weights.manifest import MANIFEST

# the preprocessing of weights that record none, without a data set: ImageNet's
_USUAL = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "resize": "short_side",
}


def loader_of_split(
    trained: TrainedModel,
    overrides: EvaluateDataOptions,
    split: str | ImageDataset,
    *,
    seed: int = 0,
    shuffle: bool = False,
) -> DataLoader[Any]:
    """Returns batches of a split, or of one that ``dataset_of_split`` has opened: all images once.

    Raises:
        UserError: there is no such split, or its classes are not the checkpoint's.
    """
    data = data_of_checkpoint(trained, overrides)
    images = dataset_of_split(trained, overrides, split) if isinstance(split, str) else split
    return build_loader(images, batch_size=data.batch_size, workers=data.workers, seed=seed, epoch=0, shuffle=shuffle)


def dataset_of_split(
    trained: TrainedModel, overrides: EvaluateDataOptions, split: str, *, any_classes: bool = False
) -> ImageDataset:
    """Opens a split with the preprocessing of a checkpoint; see ``loader_of_split``.

    With ``any_classes`` its classes may be others than the checkpoint's.
    """
    data = data_of_checkpoint(trained, overrides)
    splits = available_splits(data)
    if split not in splits:
        raise UserError(f"split={split} does not exist in the data; use one of {', '.join(splits)}")
    dataset = build_dataset(data, split, seed=0, augment=False)
    if not any_classes and list(dataset.class_names) != trained.class_names:
        raise UserError(
            f"the data have the classes {_shorten(dataset.class_names)}, but the checkpoint has "
            f"{_shorten(trained.class_names)}; point data.root at data with the same class folders"
        )
    return dataset


def data_of_checkpoint(trained: TrainedModel, overrides: EvaluateDataOptions) -> DataConfig:
    """Returns the data settings of a checkpoint.

    Later sources override earlier ones: the run's ``config.yaml`` if there is one, the checkpoint's manifest, and the
    options of the user.
    """
    files = (trained.checkpoint / CONFIG, trained.checkpoint.parent / CONFIG)  # the former in a quantized checkpoint
    file = next((file for file in files if trained.checkpoint.is_dir() and file.is_file()), None)
    data = load_config([f"recipe={file}"]).data if file is not None else DataConfig()
    saved = trained.data
    known = {name: saved[name] for name in ("dataset", "val_share", *PREPROCESSING) if name in saved}
    given = {name: value for name, value in vars(overrides).items() if value is not None}
    return replace(data, **{**known, **given})


def is_run(path: str) -> bool:
    """Whether a path is a run or checkpoint of vitfast, rather than another system's weights."""
    folder = Path(path)
    with explain_os_error(f"{path} cannot be read"):
        return folder.is_dir() and ((folder / MANIFEST).exists() or bool(list_checkpoints(folder)))


def is_weights_file(path: str) -> bool:
    """Whether a path is another system's weights: a file, or a folder of Hugging Face."""
    folder = Path(path)
    return not is_run(path) and folder.exists() and (folder.is_file() or (folder / "config.json").exists())


def load_foreign_checkpoint(
    path: str,
    name: str | None,
    data: ForeignDataOptions | None,
    device: torch.device,
    *,
    any_classes: bool = False,
) -> TrainedModel:
    """Loads another system's weights file as a ``TrainedModel``.

    The preprocessing is that of ``data``; what it leaves open, that of the file, timm's default for the name, or the
    usual one of the data set.

    Args:
        path: the file, or a folder of Hugging Face.
        name: of the model; None: recorded in the file.
        data: data set, whose class names are used, and preprocessing; None: classes have the names in the folder's
            ``config.json`` (``id2label`` of Hugging Face, ``label_names`` of timm), or else their numbers.
        device: to move the model to.
        any_classes: whether the classes of the data set may be others than the model's, which are named by their
            numbers then.

    Raises:
        UserError: the file does not fit, no data set is given, or its classes are not as many as the model's or in
            another order.
    """
    if data is not None and data.dataset is None:
        raise UserError(
            f"checkpoint={path} is a weights file, which names no classes: give data.dataset=image_folder data.root=…, "
            "for example (and data.mean, data.std, if the model was not trained with the usual ones)"
        )
    model = vitfast.create_model(name, checkpoint=path)
    settings = {field: value for field, value in vars(data or ForeignDataOptions()).items() if value is not None}
    settings = {**(preprocessing_settings(model) or {}), **settings}
    settings |= {"img_size": model.img_size, "in_chans": model.in_chans}
    recorded = _recorded_class_names(Path(path), model.num_classes)
    numbers = [str(label) for label in range(model.num_classes)]
    if data is None:
        names = recorded or numbers
        grey = {"mean": [0.449], "std": [0.226]} if model.in_chans == 1 else {}
        settings = {**_USUAL, **grey, **settings}
    else:
        config = DataConfig(**settings)
        images = build_dataset(config, available_splits(config)[0], seed=0, augment=False)
        names = list(images.class_names)
        settings |= {field: getattr(images, field) for field in PREPROCESSING}
        if any_classes:
            names = numbers
        if len(names) != model.num_classes:
            raise UserError(
                f"checkpoint={path} has {model.num_classes} classes, the data in data.root={data.root} have "
                f"{len(names)}"
            )
        if recorded is not None and recorded != names and sorted(recorded) == sorted(names):
            raise UserError(
                f"checkpoint={path} has the classes of the data in another order, {_shorten(recorded)}; the data have "
                f"{_shorten(names)}: rename the class folders so that they sort as in config.json"
            )
    manifest = {
        "model": {"name": model.model_name, "fields": model.model_fields},
        "class_names": names,
        "data": {key: settings[key] for key in ("dataset", *PREPROCESSING) if key in settings},
        "step": 0,
    }
    return TrainedModel(model.eval().to(device), Path(path), manifest, "model")


def _recorded_class_names(path: Path, num_classes: int) -> list[str] | None:
    """Reads the class names of weights in a folder; None if there are none, or they are placeholders."""
    file = path / "config.json"
    if not path.is_dir() or not file.exists():
        return None
    try:
        config = json.loads(read_text(file))
        by_number = {int(number): name for number, name in (config.get("id2label") or {}).items()}
        names = [by_number[label] for label in range(num_classes)] if by_number else config.get("label_names")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} names no classes ({type(error).__name__}: {error}); fix or remove id2label") from error
    is_list = isinstance(names, list) and len(names) == num_classes and all(isinstance(name, str) for name in names)
    return names if is_list and names != [f"LABEL_{label}" for label in range(num_classes)] else None


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
