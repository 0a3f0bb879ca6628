"""How a sweep over thresholds is laid out, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitfast.benchmarking.exit_sweep import ExitSweep, OperatingPoint
from vitfast.benchmarking.exit_throughput import ALONE
from vitfast.benchmarking.harness import Spread
from vitfast.device import describe_device
from vitfast.inference import ExitStatistics
from vitfast.runs.trained_model import TrainedModel
from vitfast.text_table import percent, text_table


@dataclass(frozen=True)
class SweepReport:
    """A sweep and where it comes from.

    Attributes:
        trained: what was measured.
        split: that the thresholds were judged on.
        precision: of the forward passes.
        calibration_split: that the thresholds were found on.
        tolerance: points of top-1 that the chosen thresholds may lose.
        sweep: what was found.
        calibration: what the exits said about the images that thresholds were found on.
        test: what they said about the images that they are judged on.
        timed_images: on how many of these speed was measured.
        batch_size: images in a batch meanwhile.
        pictures: the files that were drawn.
    """

    trained: TrainedModel
    split: str
    precision: str
    calibration_split: str
    tolerance: float
    sweep: ExitSweep
    calibration: ExitStatistics
    test: ExitStatistics
    timed_images: int
    batch_size: int
    pictures: list[Path]


def sweep_table(report: SweepReport) -> str:
    """Lays out a sweep for people."""
    sweep = report.sweep
    exits = range(1, report.test.num_exits + 1)
    header = (
        *(f"threshold {number}" for number in exits[:-1]),
        *(f"leave at {number}" for number in exits),
        "GMACs",
        "images/s",
        "speed-up",
        "top-1",
    )
    rows = [_row(point) for point in [*sweep.points, sweep.all_exits]]
    device = describe_device(next(report.trained.model.parameters()).device)
    lines = [
        f"model       {report.trained.describe()}",
        f"thresholds  found on {report.calibration_split}, {report.calibration.images:,} images",
        f"judged on   {report.split}, {report.test.images:,} images; top-1 of each exit: {_each_exit(report)}",
        f"timed       {report.timed_images:,} of them, batches of {report.batch_size}, {report.precision}, {device}, "
        "interleaved; medians",
        "",
        text_table(header, list(dict.fromkeys(rows)), left=0),
        "",
        *_chosen_lines(report),
        "",
        *(f"drawn: {path}" for path in report.pictures),
    ]
    return "\n".join(lines)


def _row(point: OperatingPoint) -> tuple[str, ...]:
    thresholds = (f"{threshold:.4f}" if threshold <= 1 else "none" for threshold in point.test.thresholds[:-1])
    shares = (percent(share) for share in point.test.shares)
    speed = point.speed
    numbers = (f"{point.test.cost:.3g}", f"{speed.images_per_s.median:,.1f}", f"{speed.speedup.median:.2f}x")
    return (*thresholds, *shares, *numbers, percent(point.test.accuracy))


def _chosen_lines(report: SweepReport) -> list[str]:
    sweep = report.sweep
    chosen, full = sweep.chosen, sweep.all_exits
    tolerance = report.tolerance
    where = f"{report.calibration_split} within {tolerance:g} points of all exits"
    thresholds = ", ".join(f"{threshold:.6g}" for threshold in chosen.test.thresholds)
    rows = [
        ("thresholds", thresholds),
        (
            f"top-1 on {report.calibration_split}",
            _against(chosen.calibration.accuracy, full.calibration.accuracy),
        ),
        (f"top-1 on {report.split}", _against(chosen.test.accuracy, full.test.accuracy)),
        ("leave at each exit", ", ".join(percent(share) for share in chosen.test.shares)),
        ("GMACs an image", f"{chosen.test.cost:.3g}, all exits {full.test.cost:.3g}"),
        ("images/s", _rate(chosen.speed.images_per_s)),
        ("images/s of all exits", _rate(sweep.chosen_all_exits.images_per_s)),
        ("speed-up", _ratio(chosen.speed.speedup)),
        (
            "of what GMACs promise",
            f"{sweep.share_of_promise:.0%} of {sweep.promised_speedup:.2f}x",
        ),
        (ALONE, f"{_rate(sweep.alone.images_per_s)} images/s; its accuracy is not known"),
    ]
    width = max(len(name) for name, _ in rows)
    budget = f"budget_gmacs={chosen.calibration.cost * (1 + 1e-9):.9g} search=false"
    store = f"python -m vitfast.exits checkpoint={report.trained.checkpoint} split={report.calibration_split} "
    return [
        f"the cheapest that is on {where}:",
        *(f"  {name.ljust(width)}  {value}" for name, value in rows),
        f"  store them: {store}{budget}",
    ]


def sweep_json(report: SweepReport) -> str:
    """Lays out a sweep for programs, as one JSON object."""
    sweep = report.sweep
    return json.dumps(
        {
            "checkpoint": str(report.trained.checkpoint),
            "model": report.trained.manifest["model"]["name"],
            "weights": report.trained.weights,
            "precision": report.precision,
            "calibration": {"split": report.calibration_split, "images": report.calibration.images},
            "split": report.split,
            "images": report.test.images,
            "exits_top1": _exit_accuracies(report.test),
            "timed_images": report.timed_images,
            "batch_size": report.batch_size,
            "all_exits": _figures(sweep.all_exits),
            "points": [_figures(point) for point in sweep.points],
            "chosen": {
                **_figures(sweep.chosen),
                "tolerance_points": report.tolerance,
                "all_exits_images_per_s": asdict(sweep.chosen_all_exits.images_per_s),
                "promised_speedup": sweep.promised_speedup,
                "share_of_promise": sweep.share_of_promise,
            },
            "alone": {"images_per_s": asdict(sweep.alone.images_per_s), "speedup": asdict(sweep.alone.speedup)},
            "pictures": [str(path) for path in report.pictures],
        },
        indent=2,
    )


def _figures(point: OperatingPoint) -> dict[str, Any]:
    return {
        "thresholds": point.test.thresholds,
        "top1": point.test.accuracy,
        "calibration_top1": point.calibration.accuracy,
        "shares": point.test.shares,
        "gmacs": point.test.cost,
        "images_per_s": asdict(point.speed.images_per_s),
        "speedup": asdict(point.speed.speedup),
    }


def _exit_accuracies(statistics: ExitStatistics) -> list[float]:
    return statistics.correct.double().mean(dim=1).tolist()


def _each_exit(report: SweepReport) -> str:
    return ", ".join(percent(accuracy) for accuracy in _exit_accuracies(report.test))


def _against(accuracy: float, full: float) -> str:
    return f"{percent(accuracy)}, all exits {percent(full)} ({100 * (accuracy - full):+.2f} points)"


def _rate(spread: Spread) -> str:
    return f"{spread.median:,.1f} ({spread.lower:,.1f}-{spread.upper:,.1f})"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.lower:.2f}-{spread.upper:.2f})"
