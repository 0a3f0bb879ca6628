"""``vitfast evaluate exits=sweep``: measures, draws and prints accuracy against speed and cost of early exit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.benchmarking.harness import Spread
from vitfast.commands.command_options import SweepOptions
from vitfast.commands.exits import threshold_table
from vitfast.config.data_schema import EvaluateDataOptions
from vitfast.data import ImageDataset, available_splits
from vitfast.device import autocast, describe_device
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.checkpoint_data import (
    data_of_checkpoint,
    dataset_of_split,
    loader_of_split,
)
from vitfast.evaluation.exit_sweep import ALONE, ExitSweep, OperatingPoint, sweep_thresholds
from vitfast.evaluation.image_files import restore_pixels
from vitfast.evaluation.plots import ExitExample, draw_exit_curve, draw_exit_examples, easy_and_hard
from vitfast.inference import ExitStatistics, collect_exit_statistics, exit_gmacs
from vitfast.inference.early_exit.early_exit import as_exit_model
from vitfast.runs.trained_model import TrainedModel
from vitfast.text_table import percent

# the examples figure: classes (rows) and images of each kind
_MAX_CLASSES = 10
_EXAMPLES = 5


@dataclass(frozen=True)
class SweepResult:
    """A sweep of a checkpoint, its settings, and the files that were drawn."""

    trained: TrainedModel
    split: str
    precision: str
    options: SweepOptions
    batch_size: int
    sweep: ExitSweep
    figures: list[Path]


def sweep_exits(
    trained: TrainedModel, data: EvaluateDataOptions, split: str, precision: str, options: SweepOptions
) -> SweepResult:
    """Measures early exit at 59 threshold settings, and draws the result.

    Thresholds are chosen on ``options.calibration`` and evaluated on ``split``, which must be another split.

    Raises:
        UserError: the model has no exits, there is no such split, both are the same, or the figures cannot be written.
    """
    as_exit_model(trained.model)  # before the images are read
    _check_calibration(trained, data, split, options.calibration)
    folder = trained.checkpoint.parent if options.folder is None else Path(options.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"sweep.folder={options.folder}: there is no such folder; create it first")
    dataset = dataset_of_split(trained, data, split)
    labels: list[Tensor] = []
    with autocast(trained.device, precision):
        held_out = loader_of_split(trained, data, options.calibration)
        calibration = collect_exit_statistics(trained.model, held_out)
        test = collect_exit_statistics(trained.model, _record_labels(loader_of_split(trained, data, dataset), labels))
    # the index in the data set of each column of the statistics, which lack unreadable images
    readable = [index for index in range(len(dataset)) if index not in dataset.bad_images]
    indices = torch.linspace(0, test.images - 1, min(options.images, test.images)).round().long()
    images = torch.stack([dataset[readable[index]][0] for index in indices.tolist()]).to(trained.device)
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
    figures = [folder / "exit_curve.png", folder / "exit_examples.png"]
    with explain_os_error(f"the figures cannot be written to {folder}"):
        draw_exit_curve(sweep, figures[0], f"{trained.name}, {split}, batch {batch_size}")
        _draw_examples(sweep, test, torch.cat(labels), dataset, readable, figures[1])
    return SweepResult(trained, split, precision, options, batch_size, sweep, figures)


def _check_calibration(trained: TrainedModel, data: EvaluateDataOptions, split: str, calibration: str) -> None:
    """Checks that the calibration split exists and is not the split that thresholds are evaluated on."""
    if calibration == split:
        raise UserError(
            f"sweep.calibration={calibration} is also split={split}: thresholds evaluated on the images they were "
            "chosen on look better than they are; give two splits"
        )
    splits = available_splits(data_of_checkpoint(trained, data))
    if calibration not in splits:
        raise UserError(
            f"sweep.calibration={calibration}: the data have the splits {', '.join(splits)}; train with "
            "data.val_share=0.05, which keeps images out of training, or give sweep.calibration=train, on which the "
            "model is overconfident"
        )


def _record_labels(loader: Iterable[tuple[Tensor, Tensor]], labels: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels_B in loader:
        labels.append(labels_B)
        yield images, labels_B


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
    title = "At the chosen thresholds; below each image the first exit's top probability, red: wrong prediction"
    draw_exit_examples(rows, _EXAMPLES, path, title)


def sweep_table(result: SweepResult) -> str:
    """Returns the printed tables."""
    sweep = result.sweep
    points = [*sweep.points, sweep.all_exits]
    columns = {
        "GMACs": [f"{point.test.cost:.3g}" for point in points],
        "images/s": [f"{point.speed.images_per_s.median:,.1f}" for point in points],
        "speed-up": [f"{point.speed.speedup.median:.2f}x" for point in points],
    }
    how = f"{result.precision}, {describe_device(result.trained.device)}, interleaved; medians"
    each_exit = ", ".join(map(percent, sweep.test.exit_accuracies()))
    lines = [
        f"model       {result.trained.describe()}",
        f"thresholds  found on {result.options.calibration}, {sweep.calibration.images:,} images",
        f"evaluated   {result.split}, {sweep.test.images:,} images; top-1 of each exit: {each_exit}",
        f"timed       {sweep.timed_images:,} of them, batches of {result.batch_size}, {how}",
        "",
        threshold_table([point.test for point in points], columns),
        "",
        *_chosen_lines(result),
        "",
        *(f"drawn: {path}" for path in result.figures),
    ]
    return "\n".join(lines)


def _chosen_lines(result: SweepResult) -> list[str]:
    def compare(accuracy: float, full: float) -> str:
        return f"{percent(accuracy)}, all exits {percent(full)} ({100 * (accuracy - full):+.2f} points)"

    def rate(spread: Spread) -> str:
        return f"{spread.median:,.1f} ({spread.lower:,.1f}-{spread.upper:,.1f})"

    sweep, calibration = result.sweep, result.options.calibration
    chosen, full, speedup = sweep.chosen, sweep.all_exits, sweep.chosen.speed.speedup
    rows = [
        ("thresholds", ", ".join(f"{threshold:.6g}" for threshold in chosen.test.thresholds)),
        (f"top-1 on {calibration}", compare(chosen.calibration.accuracy, full.calibration.accuracy)),
        (f"top-1 on {result.split}", compare(chosen.test.accuracy, full.test.accuracy)),
        ("leave at each exit", ", ".join(percent(share) for share in chosen.test.shares)),
        ("GMACs an image", f"{chosen.test.cost:.3g}, all exits {full.test.cost:.3g}"),
        ("images/s", rate(chosen.speed.images_per_s)),
        ("images/s of all exits", rate(sweep.chosen_all_exits.images_per_s)),
        ("speed-up", f"{speedup.median:.2f}x ({speedup.lower:.2f}-{speedup.upper:.2f})"),
        ("of the speed-up by GMACs", f"{sweep.share_of_prediction:.0%} of {sweep.predicted_speedup:.2f}x"),
        (ALONE, f"{rate(sweep.alone.images_per_s)} images/s; its accuracy is not known"),
    ]
    width = max(len(name) for name, _ in rows)
    budget = f"budget_gmacs={chosen.calibration.cost * (1 + 1e-9):.9g} search=false"
    store = f"python -m vitfast.exits checkpoint={result.trained.checkpoint} split={calibration} {budget}"
    return [
        f"the cheapest that is on {calibration} within {result.options.tolerance:g} points of all exits:",
        *(f"  {name.ljust(width)}  {value}" for name, value in rows),
        f"  store them: {store}",
    ]


def sweep_json(result: SweepResult) -> str:
    """Returns the result as one JSON object."""
    sweep = result.sweep
    return json.dumps(
        {
            "checkpoint": str(result.trained.checkpoint),
            "model": result.trained.name,
            "weights": result.trained.weights,
            "precision": result.precision,
            "calibration": {"split": result.options.calibration, "images": sweep.calibration.images},
            "split": result.split,
            "images": sweep.test.images,
            "exits_top1": sweep.test.exit_accuracies(),
            "timed_images": sweep.timed_images,
            "batch_size": result.batch_size,
            "all_exits": _point_json(sweep.all_exits),
            "points": [_point_json(point) for point in sweep.points],
            "chosen": {
                **_point_json(sweep.chosen),
                "tolerance_points": result.options.tolerance,
                "all_exits_images_per_s": asdict(sweep.chosen_all_exits.images_per_s),
                "promised_speedup": sweep.predicted_speedup,
                "share_of_promise": sweep.share_of_prediction,
            },
            "alone": asdict(sweep.alone),
            "pictures": [str(path) for path in result.figures],
        },
        indent=2,
    )


def _point_json(point: OperatingPoint) -> dict[str, Any]:
    return {
        "thresholds": point.test.thresholds,
        "top1": point.test.accuracy,
        "calibration_top1": point.calibration.accuracy,
        "shares": point.test.shares,
        "gmacs": point.test.cost,
        **asdict(point.speed),
    }
