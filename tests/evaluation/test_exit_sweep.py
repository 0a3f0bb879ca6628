"""A sweep of thresholds: chosen on one set of images, evaluated and timed on another."""

from __future__ import annotations

import pytest
import torch

from support.exit_models import exit_model, random_images, random_statistics
from vitfast.benchmarking.harness import Spread, Timing
from vitfast.evaluation import exit_sweep
from vitfast.evaluation.exit_sweep import ALL_EXITS, ALONE, Speed, measure_speeds
from vitfast.inference.early_exit import ExitPoint, ExitStatistics
from vitfast.inference.early_exit.statistics import SWEEP_RATIOS, geometric_thresholds

COSTS = [1.0, 2.5, 6.0]
NEVER = [2.0, 2.0, 0.0]


def candidates(statistics: ExitStatistics) -> list[list[float]]:
    return [*(geometric_thresholds(statistics, ratio) for ratio in SWEEP_RATIOS), NEVER]


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.1, 1.0])
def test_the_chosen_thresholds_are_the_cheapest_that_are_accurate_enough(tolerance: float) -> None:
    statistics = random_statistics(400)
    full = statistics.accuracy(NEVER)
    chosen = exit_sweep.choose_thresholds(statistics, candidates(statistics), COSTS, tolerance)
    assert statistics.accuracy(chosen) >= full - tolerance - 1e-9
    cheaper = [one for one in candidates(statistics) if statistics.cost(one, COSTS) < statistics.cost(chosen, COSTS)]
    assert all(statistics.accuracy(one) < full - tolerance for one in cheaper)
    assert (tolerance < 1.0) == bool(cheaper)


def test_where_every_early_exit_loses_too_much_none_leaves_early() -> None:
    confidence = torch.rand(3, 50)
    correct = torch.tensor([False, False, True])[:, None].expand(3, 50)
    statistics = ExitStatistics(confidence, correct)
    assert exit_sweep.choose_thresholds(statistics, candidates(statistics), COSTS, 0.002) == NEVER


def test_thresholds_are_chosen_on_one_set_and_evaluated_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration, test = random_statistics(300, seed=1), random_statistics(200, seed=2)
    timed: list[tuple[list[list[float]], float]] = []

    def fake_speeds(model, images, points, *, seconds, alone=False, **_):
        timed.append(([list(point) for point in points], seconds))
        names = [ALL_EXITS, *(f"{number}" for number in range(len(points))), *([ALONE] if alone else [])]
        spread = Spread(2.0, 1.0, 3.0)
        return {name: Speed(spread, spread) for name in names}

    monkeypatch.setattr(exit_sweep, "measure_speeds", fake_speeds)
    indices = torch.arange(0, 200, 5)
    sweep = exit_sweep.sweep_thresholds(
        exit_model("deit"),
        calibration,
        test,
        COSTS,
        torch.empty(0),
        indices,
        tolerance=0.01,
        batch_size=8,
        precision="fp32",
        seconds=7.0,
    )
    assert len(sweep.points) == 59
    for point, thresholds in zip(sweep.points, candidates(calibration), strict=False):
        assert point.calibration == ExitPoint.measure(calibration, thresholds, COSTS)
        assert point.test == ExitPoint.measure(test, thresholds, COSTS)
    assert sweep.all_exits.test.accuracy == test.accuracy(NEVER)
    chosen = exit_sweep.choose_thresholds(calibration, candidates(calibration), COSTS, 0.01)
    assert sweep.chosen.test == ExitPoint.measure(test, chosen, COSTS)
    assert timed == [(candidates(calibration)[:-1], 0.0), ([chosen], 7.0)]
    part = ExitStatistics(test.confidence[:, indices], test.correct[:, indices])
    assert sweep.predicted_speedup == pytest.approx(6.0 / part.cost(chosen, COSTS))
    assert sweep.share_of_prediction == pytest.approx(2.0 / sweep.predicted_speedup)


def test_every_way_answers_all_images_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exit_model("convolutions")
    images = random_images(model, 7)
    seen: dict[str, list[int]] = {}

    def measure_once(cases, timer, seconds):
        for case in cases:
            calls: list[int] = []
            hook = model.exits[0].register_forward_hook(lambda _, inputs, __, calls=calls: calls.append(len(inputs[0])))
            case.run()
            hook.remove()
            seen[case.name] = calls
        return [Timing(case, [0.5, 0.25, 0.5], 1) for case in cases]

    monkeypatch.setattr(exit_sweep, "measure", measure_once)
    speeds = measure_speeds(
        model, images, [[0.0, 0.0], [2.0, 0.0]], batch_size=3, precision="fp32", seconds=1.0, alone=True
    )
    assert list(speeds) == [ALL_EXITS, "0", "1", ALONE]
    assert seen == {ALL_EXITS: [3, 3, 1], "0": [3, 3, 1], "1": [3, 3, 1], ALONE: []}
    assert speeds["0"].images_per_s.median == 14.0
    assert speeds["0"].speedup.median == 1.0


def test_leaving_early_is_faster() -> None:
    model = exit_model("deit", embed_dim=64, depth=4)
    images = random_images(model, 32)
    points = [[0.0, 0.0, 0.0], NEVER]
    speeds = measure_speeds(model, images, points, batch_size=16, precision="fp32", seconds=0.0)
    first, never = speeds["0"].speedup.median, speeds["1"].speedup.median
    assert first > 1.0
    assert first > never
