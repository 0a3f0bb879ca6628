"""What early exit is worth: thresholds found on one split, judged and timed on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vitfast.benchmarking.exit_throughput import ALL_EXITS, ALONE, Speed, measure_speeds
from vitfast.inference import ExitPoint, ExitStatistics
from vitfast.inference.early_exit.early_exit import ALWAYS, NEVER
from vitfast.inference.early_exit.statistics import SWEEP_RATIOS, geometric_thresholds
from vitfast.models import ImageModel


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds, what the images say of them, and how fast they are.

    Attributes:
        calibration: judged on the images that they were found on.
        test: judged on the images of the report.
        speed: measured; those of the curve and that of the chosen point are of two measurements.
    """

    calibration: ExitPoint
    test: ExitPoint
    speed: Speed


@dataclass(frozen=True)
class ExitSweep:
    """What ``sweep_thresholds`` found.

    Attributes:
        points: the 59 thresholds of the released code, from those with which most images leave early.
        all_exits: the same model without early exit, measured beside the curve.
        chosen: the cheapest thresholds that are accurate enough on the calibration images.
        chosen_all_exits: the same model without early exit, measured beside the chosen point.
        alone: a transformer as the last exit is, on its own, measured beside the chosen point.
        promised_speedup: what the multiply-adds of the images that were timed say of the chosen point.
    """

    points: list[OperatingPoint]
    all_exits: OperatingPoint
    chosen: OperatingPoint
    chosen_all_exits: Speed
    alone: Speed
    promised_speedup: float

    @property
    def share_of_promise(self) -> float:
        """The measured over the promised speed-up of the chosen point."""
        return self.chosen.speed.speedup.median / self.promised_speedup


def sweep_thresholds(
    model: ImageModel,
    calibration: ExitStatistics,
    test: ExitStatistics,
    costs: Sequence[float],
    images: Tensor,
    indices: Tensor,
    *,
    tolerance: float,
    batch_size: int,
    precision: str,
    seconds: float,
) -> ExitSweep:
    """Finds thresholds on one set of images, judges them on another, and times them there.

    Args:
        model: with exits, in evaluation mode.
        calibration: what its exits said about the images that thresholds are found on.
        test: what they said about the others.
        costs: of an image that leaves at each exit, from ``exit_gmacs``.
        images: ``[n, in_chans, img_size, img_size]``, a part of the test images, on the model's device.
        indices: their places in ``test``, ``[n]``.
        tolerance: what top-1 on the calibration images may lose to all exits, 0..1.
        batch_size: as ``measure_speeds``.
        precision: as ``measure_speeds``.
        seconds: as ``measure_speeds``, for the chosen thresholds.
    """
    never = [*[NEVER] * (calibration.num_exits - 1), ALWAYS]
    candidates = [geometric_thresholds(calibration, ratio) for ratio in SWEEP_RATIOS]
    chosen = choose_thresholds(calibration, [*candidates, never], costs, tolerance)
    how = {"batch_size": batch_size, "precision": precision}
    curve = measure_speeds(model, images, candidates, **how, seconds=0.0)  # type: ignore[arg-type]
    pair = measure_speeds(model, images, [chosen], **how, seconds=seconds, alone=True)  # type: ignore[arg-type]

    def point(thresholds: Sequence[float], speed: Speed) -> OperatingPoint:
        on_calibration, on_test = (ExitPoint.measure(one, thresholds, costs) for one in (calibration, test))
        return OperatingPoint(on_calibration, on_test, speed)

    timed = ExitStatistics(test.confidence[:, indices], test.correct[:, indices])
    return ExitSweep(
        points=[point(thresholds, curve[f"{number}"]) for number, thresholds in enumerate(candidates)],
        all_exits=point(never, curve[ALL_EXITS]),
        chosen=point(chosen, pair["0"]),
        chosen_all_exits=pair[ALL_EXITS],
        alone=pair[ALONE],
        promised_speedup=costs[-1] / timed.cost(chosen, costs),
    )


def choose_thresholds(
    statistics: ExitStatistics, candidates: Sequence[Sequence[float]], costs: Sequence[float], tolerance: float
) -> list[float]:
    """Returns the cheapest candidate that is as accurate as the last exit, up to a tolerance.

    Args:
        statistics: what the exits said about the images to judge by.
        candidates: thresholds; one of them lets no image leave early.
        costs: of an image that leaves at each exit.
        tolerance: what top-1 may lose, 0..1.
    """
    least = float(statistics.correct[-1].double().mean()) - tolerance
    points = [ExitPoint.measure(statistics, thresholds, costs) for thresholds in candidates]
    # the rounding of a mean must not decide
    accurate = [point for point in points if point.accuracy >= least - 1e-9]
    return min(accurate, key=lambda point: (point.cost, -point.accuracy)).thresholds
