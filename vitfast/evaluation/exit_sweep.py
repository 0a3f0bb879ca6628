"""Accuracy, cost and measured speed of early exit over a sweep of thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from vitfast.benchmarking.harness import Case, Spread, Timer, measure
from vitfast.device import autocast
from vitfast.inference import EarlyExit, ExitPoint, ExitStatistics
from vitfast.inference.early_exit.early_exit import ALWAYS, NEVER
from vitfast.inference.early_exit.statistics import SWEEP_RATIOS, geometric_thresholds
from vitfast.models import ImageModel
from vitfast.models.dvt import DVTExit
from vitfast.models.dvt_fields import DVTFields

ALL_EXITS = "all exits"
ALONE = "the last exit's transformer alone"


@dataclass(frozen=True)
class Speed:
    """Measured speed.

    Attributes:
        images_per_s: median and quartiles.
        speedup: over all exits, computed within each round.
    """

    images_per_s: Spread
    speedup: Spread


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds evaluated on two sets of images, and their speed.

    Attributes:
        calibration: on the images that the thresholds were chosen on.
        test: on the test images.
        speed: measured on test images.
    """

    calibration: ExitPoint
    test: ExitPoint
    speed: Speed


@dataclass(frozen=True)
class ExitSweep:
    """Result of ``sweep_thresholds``; the curve and the chosen point are two separate measurements.

    Attributes:
        calibration: statistics of the images that thresholds were chosen on.
        test: statistics of the images that they were evaluated on.
        timed_images: number of test images that were timed.
        points: the 59 threshold settings of the released code, starting with the earliest exits.
        all_exits: without early exit, measured with the curve.
        chosen: the cheapest thresholds that are accurate enough on the calibration images.
        chosen_all_exits: without early exit, measured with the chosen point.
        alone: the last exit's transformer alone, measured with the chosen point.
        predicted_speedup: of the chosen point, predicted from the multiply-adds of the timed images.
    """

    calibration: ExitStatistics
    test: ExitStatistics
    timed_images: int
    points: list[OperatingPoint]
    all_exits: OperatingPoint
    chosen: OperatingPoint
    chosen_all_exits: Speed
    alone: Speed
    predicted_speedup: float

    @property
    def share_of_prediction(self) -> float:
        """Measured divided by predicted speed-up of the chosen point."""
        return self.chosen.speed.speedup.median / self.predicted_speedup


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
    """Chooses thresholds on one set of images, and evaluates and times them on another.

    Args:
        model: with exits, in evaluation mode.
        calibration: statistics of the images that thresholds are chosen on.
        test: statistics of the test images.
        costs: cumulative cost of each exit, from ``exit_gmacs``.
        images: the test images to time, as in ``measure_speeds``.
        indices: their columns in ``test``, ``[n]``.
        tolerance: top-1 that the chosen thresholds may lose on the calibration images, 0..1.
        batch_size: as in ``measure_speeds``.
        precision: as in ``measure_speeds``.
        seconds: as in ``measure_speeds``, for the chosen thresholds.
    """
    never = [*[NEVER] * (calibration.num_exits - 1), ALWAYS]
    candidates = [geometric_thresholds(calibration, ratio) for ratio in SWEEP_RATIOS]
    chosen = choose_thresholds(calibration, [*candidates, never], costs, tolerance)
    speeds = partial(measure_speeds, model, images, batch_size=batch_size, precision=precision)
    curve = speeds(candidates, seconds=0.0)
    pair = speeds([chosen], seconds=seconds, alone=True)

    def point(thresholds: Sequence[float], speed: Speed) -> OperatingPoint:
        on_calibration, on_test = (ExitPoint.measure(one, thresholds, costs) for one in (calibration, test))
        return OperatingPoint(on_calibration, on_test, speed)

    timed = ExitStatistics(test.confidence[:, indices], test.correct[:, indices])
    return ExitSweep(
        calibration=calibration,
        test=test,
        timed_images=len(images),
        points=[point(thresholds, curve[f"{number}"]) for number, thresholds in enumerate(candidates)],
        all_exits=point(never, curve[ALL_EXITS]),
        chosen=point(chosen, pair["0"]),
        chosen_all_exits=pair[ALL_EXITS],
        alone=pair[ALONE],
        predicted_speedup=costs[-1] / timed.cost(chosen, costs),
    )


def choose_thresholds(
    statistics: ExitStatistics, candidates: Sequence[Sequence[float]], costs: Sequence[float], tolerance: float
) -> list[float]:
    """Returns the cheapest candidate whose accuracy is at most ``tolerance`` (0..1) below that of the last exit.

    The candidates include thresholds at which no image leaves early.
    """
    least = float(statistics.correct[-1].double().mean()) - tolerance
    points = [ExitPoint.measure(statistics, thresholds, costs) for thresholds in candidates]
    accurate = [point for point in points if point.accuracy >= least - 1e-9]  # tolerate the rounding of a mean
    return min(accurate, key=lambda point: (point.cost, -point.accuracy)).thresholds


def measure_speeds(
    model: ImageModel,
    images: Tensor,
    points: Sequence[Sequence[float]],
    *,
    batch_size: int,
    precision: str,
    seconds: float,
    alone: bool = False,
) -> dict[str, Speed]:
    """Times early exit at several thresholds and the model with all exits in interleaved rounds.

    Each round classifies all images once in each of these ways, in batches that are already on the device.

    Args:
        model: with exits, in evaluation mode.
        images: ``[n, in_chans, img_size, img_size]``, on the model's device.
        points: lists of thresholds.
        batch_size: images in a batch; the last may be smaller.
        precision: ``"fp32"``, or ``"bf16"`` (autocast).
        seconds: time budget; there are at least five rounds.
        alone: also time a plain transformer like the last exit's, randomly initialized and without feature reuse.

    Returns:
        The speeds by ``ALL_EXITS``, the index of the point as text, and with ``alone`` also ``ALONE``.
    """
    batches = images.split(batch_size)
    models: dict[str, Callable[[Tensor], object]] = {ALL_EXITS: model}
    models |= {f"{number}": EarlyExit(model, thresholds) for number, thresholds in enumerate(points)}
    if alone:
        models[ALONE] = _last_exit_alone(model)

    def run(classify: Callable[[Tensor], object]) -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            for batch in batches:
                classify(batch)

    cases = [Case(name, partial(run, classify)) for name, classify in models.items()]
    timings = measure(cases, Timer(images.device), seconds)
    return {
        one.case.name: Speed(Spread.of(len(images) / sample for sample in one.samples_s), one.speedup_over(timings[0]))
        for one in timings
    }


def _last_exit_alone(model: ImageModel) -> Callable[[Tensor], object]:
    fields = model.fields
    assert isinstance(fields, DVTFields)
    plain = replace(fields, feature_reuse=False, relation_reuse=False)
    parameter = next(model.parameters())
    transformer: nn.Module = DVTExit(plain, fields.num_exits - 1).to(parameter.device, parameter.dtype).eval()
    return lambda batch: transformer(batch, None, (), return_relations=False)
