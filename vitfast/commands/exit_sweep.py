"""``vitfast evaluate exits=sweep``: measures and draws accuracy against speed and cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitfast.benchmarking.exit_sweep import ExitSweep, OperatingPoint, sweep_thresholds
from vitfast.commands.exit_sweep_text import SweepReport
from vitfast.config import option
from vitfast.data import ImageDataset, available_splits
from vitfast.device import autocast
from vitfast.errors import UserError
from vitfast.evaluation.checkpoint_data import (
    EvaluateDataOptions,
    data_of_checkpoint,
    dataset_of_split,
    image_loader,
    loader_of_split,
)
from vitfast.evaluation.plots import (
    CurvePoint,
    ExitExample,
    draw_exit_curve,
    draw_exit_examples,
    easy_and_hard,
    restore_pixels,
)
from vitfast.inference import ExitStatistics, collect_exit_statistics, exit_gmacs
from vitfast.inference.early_exit.early_exit import as_exit_model
from vitfast.runs.trained_model import TrainedModel

CURVE_FILE = "exit_curve.png"
EXAMPLES_FILE = "exit_examples.png"
# the examples figure: classes (rows) and images of each kind
_MAX_CLASSES = 10
_EXAMPLES = 5


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


def sweep_exits(
    trained: TrainedModel, data: EvaluateDataOptions, split: str, precision: str, options: SweepOptions
) -> SweepReport:
    """Measures early exit at 59 choices of thresholds, and draws the result.

    Thresholds are found on ``options.calibration`` and judged on ``split``, which must be another split.

    Raises:
        UserError: if the model has no exits, there is no such split, both are one, or
            the pictures cannot be written.
    """
    device = next(trained.model.parameters()).device
    as_exit_model(trained.model)  # before the images are looked for
    _check_calibration(trained, data, split, options.calibration)
    folder = _picture_folder(trained, options.folder)
    dataset = dataset_of_split(trained, data, split)
    labels: list[Tensor] = []
    with autocast(device, precision):
        held_out = loader_of_split(trained, data, options.calibration)
        calibration = collect_exit_statistics(trained.model, held_out)
        test = collect_exit_statistics(trained.model, _watched(image_loader(trained, data, dataset), labels))
    # which image of the data set each column of the statistics is; those that could not be read have none
    readable = [index for index in range(len(dataset)) if index not in dataset.bad_images]
    indices = torch.linspace(0, test.images - 1, min(options.images, test.images)).round().long()
    images = torch.stack([dataset[readable[index]][0] for index in indices.tolist()]).to(device)
    batch_size = options.batch_size or data_of_checkpoint(trained, data).batch_size
    sweep = sweep_thresholds(
        trained.model,
        calibration,
        test,
        exit_gmacs(trained.model),
        images,
        indices,
        tolerance=options.tolerance / 100,
        batch_size=batch_size,
        precision=precision,
        seconds=options.seconds,
    )
    pictures = [folder / CURVE_FILE, folder / EXAMPLES_FILE]
    try:
        _draw_curve(sweep, pictures[0], f"{trained.manifest['model']['name']}, {split}, batch {batch_size}")
        _draw_examples(sweep, test, torch.cat(labels), dataset, readable, pictures[1])
    except OSError as error:
        raise UserError(f"the pictures cannot be written to {folder}: {error.strerror or error}") from error
    return SweepReport(
        trained,
        split,
        precision,
        options.calibration,
        options.tolerance,
        sweep,
        calibration,
        test,
        len(images),
        batch_size,
        pictures,
    )


def _check_calibration(trained: TrainedModel, data: EvaluateDataOptions, split: str, calibration: str) -> None:
    """Refuses to choose thresholds on the images that they are judged on, or on images that are not there."""
    if calibration == split:
        raise UserError(
            f"sweep.calibration={calibration} is also split={split}: thresholds that are judged on the images "
            "they were chosen on look better than they are; give two splits"
        )
    splits = available_splits(data_of_checkpoint(trained, data))
    if calibration not in splits:
        raise UserError(
            f"sweep.calibration={calibration}: the data have the splits {', '.join(splits)}; train with "
            "data.val_share=0.05, which keeps images out of training, or give sweep.calibration=train, of which the "
            "model is too sure"
        )


def _picture_folder(trained: TrainedModel, given: str | None) -> Path:
    """The folder that was given, or that of the run, which the checkpoint lies in."""
    folder = trained.checkpoint.parent if given is None else Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"sweep.folder={given}: there is no such folder; create it first")
    return folder


def _watched(loader: Iterable[tuple[Tensor, Tensor]], labels: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Passes batches on and keeps their labels."""
    for images, labels_B in loader:
        labels.append(labels_B)
        yield images, labels_B


def _draw_curve(sweep: ExitSweep, path: Path, title: str) -> None:
    def place(point: OperatingPoint) -> CurvePoint:
        one = point.test
        return CurvePoint(point.speed.images_per_s.median, one.cost, one.accuracy, one.shares)

    points = [place(point) for point in sweep.points]
    draw_exit_curve(points, place(sweep.all_exits), place(sweep.chosen), path, title)


def _draw_examples(
    sweep: ExitSweep, test: ExitStatistics, labels: Tensor, dataset: ImageDataset, readable: list[int], path: Path
) -> None:
    def pixels(example: ExitExample) -> tuple[Tensor, ExitExample]:
        image = dataset[readable[example.index]][0]
        return restore_pixels(image, dataset.mean, dataset.std), example

    rows = []
    for class_index, name in list(enumerate(dataset.class_names))[:_MAX_CLASSES]:
        easy, hard = easy_and_hard(test, sweep.chosen.test.thresholds, labels, class_index, _EXAMPLES)
        rows.append((name, [pixels(one) for one in easy], [pixels(one) for one in hard]))
    title = "At the chosen thresholds; below each image the first exit's top probability, red: answered wrongly"
    draw_exit_examples(rows, _EXAMPLES, path, title)
