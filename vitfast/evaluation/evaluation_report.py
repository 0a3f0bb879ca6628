"""The splits that a checkpoint is measured on, and per-class results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader

from vitfast.config import DATASETS, DataConfig, load_config, option
from vitfast.data import ImageDataset, available_splits, build_dataset, build_loader
from vitfast.errors import UserError
from vitfast.evaluation.evaluator import Evaluation
from vitfast.runs.run_directory import CONFIG
from vitfast.runs.trained_model import TrainedModel


@dataclass
class EvaluateDataOptions:
    """Where the images come from; null: as the run was trained."""

    dataset: str | None = option(None, "the data set; null: that of the run", choices=DATASETS)
    root: str | None = option(None, "folder of the images; null: that of the run")
    batch_size: int | None = option(None, "images in a batch; null: that of the run", minimum=1)
    workers: int | None = option(None, "processes that read images; null: as the run", minimum=0)
    on_corrupt: str | None = option(
        None,
        "an image that cannot be read; raise: end and name it; skip: warn and leave it out; null: as the run",
        choices=["raise", "skip"],
    )


def loader_of_split(trained: TrainedModel, overrides: EvaluateDataOptions, split: str) -> DataLoader[Any]:
    """Returns the batches of a split as a checkpoint reads images: all of them once, in order.

    Args:
        trained: what will be measured.
        overrides: what the user gave.
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: if there is no such split, or its classes are not the checkpoint's.
    """
    return loader_in_order(trained, overrides, dataset_of_split(trained, overrides, split))


def loader_in_order(trained: TrainedModel, overrides: EvaluateDataOptions, dataset: ImageDataset) -> DataLoader[Any]:
    """Returns the batches of a data set that ``dataset_of_split`` opened: all images once, in order."""
    data = data_of_checkpoint(trained, overrides)
    return build_loader(dataset, batch_size=data.batch_size, workers=data.workers, seed=0, epoch=0, shuffle=False)


def dataset_of_split(trained: TrainedModel, overrides: EvaluateDataOptions, split: str) -> ImageDataset:
    """Opens a split as a checkpoint reads images; the arguments and errors are those of ``loader_of_split``."""
    data = data_of_checkpoint(trained, overrides)
    splits = available_splits(data)
    if split not in splits:
        raise UserError(f"split={split}: the data have none; use one of {', '.join(splits)}")
    dataset = build_dataset(data, split, seed=0, augment=False)
    if list(dataset.class_names) != trained.class_names:
        raise UserError(
            f"the data have the classes {_some(dataset.class_names)}, but the checkpoint knows "
            f"{_some(trained.class_names)}; point data.root at data with the same class folders"
        )
    return dataset


def data_of_checkpoint(trained: TrainedModel, overrides: EvaluateDataOptions) -> DataConfig:
    """Returns the data settings of a checkpoint: its run's where there is a ``config.yaml``, always its manifest's.

    Args:
        trained: whose manifest says how images are read.
        overrides: what the user gave.
    """
    files = (trained.checkpoint / CONFIG, trained.checkpoint.parent / CONFIG)  # the first of a quantized checkpoint
    file = next((file for file in files if trained.checkpoint.is_dir() and file.is_file()), None)
    data = load_config([f"recipe={file}"]).data if file is not None else DataConfig()
    saved = trained.data
    names = ("dataset", "val_share", "mean", "std", "resize", "interpolation", "crop_pct")
    known = {name: saved[name] for name in names if name in saved}
    given = {name: value for name, value in vars(overrides).items() if value is not None}
    return replace(data, **{**known, "img_size": saved["img_size"], "in_chans": saved["in_chans"], **given})


def per_class(evaluation: Evaluation, class_names: list[str]) -> list[dict[str, Any]]:
    """Returns for each class its number of images, precision and recall (its accuracy); NaN where undefined."""
    confusion = evaluation.confusion
    assert confusion is not None
    correct, labelled, predicted = confusion.diagonal().double(), confusion.sum(dim=1), confusion.sum(dim=0)
    precision, recall = (correct / predicted).tolist(), (correct / labelled).tolist()
    return [
        {"class": name, "n": int(labelled[index]), "precision": precision[index], "recall": recall[index]}
        for index, name in enumerate(class_names)
    ]


def confusions(evaluation: Evaluation, class_names: list[str]) -> list[tuple[str, str, int]]:
    """Returns the mistakes as (label, prediction, count), the most frequent first."""
    confusion = evaluation.confusion
    assert confusion is not None
    wrong = confusion.clone().fill_diagonal_(0)
    pairs = [(class_names[i], class_names[j], int(wrong[i, j])) for i, j in wrong.nonzero().tolist()]
    return sorted(pairs, key=lambda pair: -pair[2])


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
