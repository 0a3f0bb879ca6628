"""The ``evaluate`` verb: a checkpoint measured in detail on a split."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from vitfast.config import DATASETS, DataConfig, load_config, option
from vitfast.data import ImageDataset, available_splits, build_dataset, build_loader
from vitfast.device import select_device
from vitfast.errors import UserError
from vitfast.evaluation.accelerated_report import AcceleratedReport, measure_accelerated
from vitfast.evaluation.early_exit_report import EarlyExitReport, check_calibrated, measure_early_exit
from vitfast.evaluation.evaluator import Evaluation, evaluate
from vitfast.runs.run_directory import CONFIG
from vitfast.runs.trained_model import WEIGHTS, TrainedModel, load_trained_model
from vitfast.tasks import create_plain_task
from vitfast.text_table import percent, text_table

_CONFUSIONS_SHOWN = 5


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


@dataclass
class SweepOptions:
    """``exits=sweep``: accuracy against speed and cost."""

    calibration: str = option(
        "val", "held-out images that the thresholds are found on, another split", choices=["train", "val", "test"]
    )
    tolerance: float = option(
        0.2, "points of top-1 on the calibration images that the chosen thresholds may lose to all exits", minimum=0
    )
    batch_size: int | None = option(None, "images in a batch while speed is measured; null: data.batch_size", minimum=1)
    images: int = option(512, "images that speed is measured on, evenly spread over the split", minimum=1)
    seconds: float = option(
        60.0, "time to measure the chosen thresholds against all exits; the curve takes its own", above=0
    )
    folder: str | None = option(None, "where the pictures go; null: the run's folder")


@dataclass
class EvaluateOptions:
    """Measures a checkpoint on a split of the data that it was trained on, or on others."""

    checkpoint: str = option(help="a run's folder (its newest checkpoint) or a checkpoint folder")
    split: str = option("test", "which images", choices=["train", "val", "test"])
    weights: str = option("auto", "auto: the averaged weights (EMA) if there are any", choices=list(WEIGHTS))
    output: str = option("table", "how the figures are printed", choices=["table", "json"])
    exits: str = option(
        "each",
        "a model with exits; each: how accurate each is; sweep: accuracy, images/s and cost of 59 choices of "
        "thresholds, and pictures; see sweep.…",
        choices=["each", "sweep"],
    )
    quantized_ckpt: bool | None = option(None, "as myrtle-vision calls it; not needed, the checkpoint says it itself")
    early_exit: bool = option(False, "also measure early exit, with the thresholds of python -m vitfast.exits")
    accelerate: str | None = option(
        None,
        "measure the model as vitfast.accelerate makes it for this CPU, in this precision, beside the model itself; "
        "null: only the model itself",
        choices=["fp32", "bf16", "fp16_32", "int8"],
    )
    precision: str = option("fp32", "arithmetic; bf16: autocast", choices=["fp32", "bf16"])
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    data: EvaluateDataOptions = field(default_factory=EvaluateDataOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)

    def check(self, prefix: str = "") -> None:
        """Checks what limits cannot say.

        Raises:
            UserError: ``accelerate`` is given with an option that does not go with it.
        """
        others = {
            f"precision={self.precision}": self.precision != "fp32",
            f"device={self.device}": self.device == "cuda",
            f"exits={self.exits}": self.exits == "sweep",
            "early_exit=true": self.early_exit,
        }
        wrong = [name for name, given in others.items() if given]
        if self.accelerate is not None and wrong:
            raise UserError(
                f"accelerate={self.accelerate} measures whole models on the CPU, in a precision of its own; "
                f"leave {' and '.join(wrong)} out, or accelerate"
            )


def evaluate_checkpoint(options: EvaluateOptions) -> str:
    """Measures a checkpoint and returns what is to be printed, a table or JSON.

    Raises:
        UserError: if there is no valid checkpoint, no such split, the images do not fit the model, or thresholds for
            early exit are missing.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = select_device(options.device if options.accelerate is None else "cpu")
    trained = load_trained_model(options.checkpoint, weights=options.weights, device=device)
    if options.early_exit:
        check_calibrated(trained)
    loader = loader_of_split(trained, options.data, options.split)
    images = len(cast(ImageDataset, loader.dataset))
    lay_out = as_json if options.output == "json" else as_table
    if options.accelerate is not None:
        accelerated = measure_accelerated(trained, loader, precision=options.accelerate)
        return lay_out(trained, options, accelerated.evaluation, images, accelerated=accelerated)
    evaluation = evaluate(
        create_plain_task(trained.model),
        loader,
        num_classes=len(trained.class_names),
        num_exits=trained.model.num_exits,
        device=device,
        precision=options.precision,
        detailed=True,
    )
    assert evaluation is not None  # nothing can stop it
    early = None
    if options.early_exit:
        early = measure_early_exit(trained, loader, device=device, precision=options.precision)
    return lay_out(trained, options, evaluation, images, early)


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


def as_table(
    trained: TrainedModel,
    options: EvaluateOptions,
    evaluation: Evaluation,
    images: int,
    early: EarlyExitReport | None = None,
    accelerated: AcceleratedReport | None = None,
) -> str:
    """Lays out the figures for people.

    Args:
        trained: what was measured.
        options: how.
        evaluation: the figures.
        images: of the split; those that could not be read are among them.
        early: what early exit makes of them.
        accelerated: how the model itself compares, where ``evaluation`` is of the accelerated one.
    """
    bad = images - evaluation.images
    measured = f"{evaluation.images:,} images" + (f" of {images:,}: {bad:,} cannot be read" if bad else "")
    classes = per_class(evaluation, trained.class_names)
    rows = [(row["class"], f"{row['n']:,}", percent(row["precision"]), percent(row["recall"])) for row in classes]
    summary = [
        ("top-1", percent(evaluation.top1)),
        ("top-5", percent(evaluation.top5)),
        *((f"top-1 of exit {number}", percent(top1)) for number, top1 in enumerate(evaluation.exits or [], start=1)),
        ("loss", f"{evaluation.loss:.4f}"),
        ("calibration error (ECE)", percent(evaluation.calibration_error)),
        ("images/s", f"{evaluation.images_per_s:,.0f}"),
        *(early.summary() if early is not None else ()),
        *(accelerated.summary() if accelerated is not None else ()),
    ]
    width = max(len(name) for name, _ in summary)
    how = [] if accelerated is None else [f"runs     accelerated, in {accelerated.precision}, by {accelerated.kernels}"]
    lines = [
        f"model    {trained.describe()}",
        *how,
        f"split    {options.split}, {measured}",
        "",
        *(f"{name.ljust(width)}  {value:>9}" for name, value in summary),
        "",
        text_table(("class", "n", "precision", "recall"), rows),
    ]
    worst = confusions(evaluation, trained.class_names)[:_CONFUSIONS_SHOWN]
    if worst:
        lines += [
            "",
            "most frequent mistakes:",
            *(f"  {count:,} x {label} taken for {wrong}" for label, wrong, count in worst),
        ]
    return "\n".join(lines)


def as_json(
    trained: TrainedModel,
    options: EvaluateOptions,
    evaluation: Evaluation,
    images: int,
    early: EarlyExitReport | None = None,
    accelerated: AcceleratedReport | None = None,
) -> str:
    """The figures as one JSON object; what is undefined is null. The arguments are those of ``as_table``."""
    classes = per_class(evaluation, trained.class_names)
    return json.dumps(
        {
            "checkpoint": str(trained.checkpoint),
            "model": trained.manifest["model"]["name"],
            "weights": trained.weights,
            "split": options.split,
            "precision": options.accelerate or options.precision,
            "images": evaluation.images,
            "unreadable_images": images - evaluation.images,
            **evaluation.metrics(),
            **({"early_exit": early.figures()} if early is not None else {}),
            **({"accelerate": accelerated.figures()} if accelerated is not None else {}),
            "calibration_error": evaluation.calibration_error,
            "per_class": [{key: _json_number(value) for key, value in row.items()} for row in classes],
        },
        indent=2,
    )


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
