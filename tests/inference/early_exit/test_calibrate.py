"""Calibration of thresholds for a budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from support.exit_models import exit_model, random_images, random_statistics
from support.slow import slow
from vitfast import EarlyExit, UserError, calibrate_exits, create_model
from vitfast.inference.early_exit import ExitStatistics, exit_gmacs, exit_latency_ms
from vitfast.inference.early_exit.calibrate import solve_thresholds
from vitfast.models import DVT

COSTS = [0.468, 1.446, 3.455]
BUDGETS = [0.468, 0.5, 0.8, 1.2, 2.0, 3.0, 3.454]


def best_of_all(statistics: ExitStatistics, costs: list[float], budget: float) -> float:
    """The accuracy of the best thresholds within the budget, by exhaustive search."""
    choices = [[*confidence.tolist(), 2.0] for confidence in statistics.confidence[:-1]]
    accuracies = []
    for chosen in itertools.product(*choices):
        thresholds = [*chosen, 0.0]
        if statistics.cost(thresholds, costs) <= budget * (1 + 1e-9):
            accuracies.append(statistics.accuracy(thresholds))
    return max(accuracies)


@pytest.mark.parametrize(("num_exits", "digits"), [(2, None), (3, 1), *slow([(2, 1), (3, None), (5, None), (5, 1)])])
def test_the_budget_is_kept_and_the_search_does_no_harm(num_exits: int, digits: int | None) -> None:
    statistics = random_statistics(120, num_exits, digits=digits)
    costs = [float(2**index) for index in range(num_exits)]
    gained = 0.0
    for budget in torch.linspace(1.0, costs[-1] * 1.1, 6).tolist():
        plain = solve_thresholds(statistics, costs, budget, search=False)
        searched = solve_thresholds(statistics, costs, budget)
        assert len(plain) == len(searched) == num_exits
        assert statistics.cost(plain, costs) <= budget
        assert statistics.cost(searched, costs) <= budget * (1 + 1e-9)
        gained += statistics.accuracy(searched) - statistics.accuracy(plain)
        assert statistics.accuracy(searched) >= statistics.accuracy(plain)
    assert searched == solve_thresholds(statistics, costs, budget)
    assert gained > 0 or num_exits == 2


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_budget_is_spent(budget: float) -> None:
    """Without search, the unspent part is less than the cost of one more image at a later exit, for each exit."""
    statistics = random_statistics(2000)
    cost = statistics.cost(solve_thresholds(statistics, COSTS, budget, search=False), COSTS)
    assert budget - 2 * COSTS[-1] / 2000 <= cost <= budget


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_of_two_exits_the_best_is_found(seed: int, digits: int | None) -> None:
    statistics = random_statistics(40, 2, seed=seed, digits=digits)
    for budget in (1.0, 1.3, 2.0, 3.1, 4.0):
        thresholds = solve_thresholds(statistics, [1.0, 4.0], budget)
        assert statistics.accuracy(thresholds) == best_of_all(statistics, [1.0, 4.0], budget)


@pytest.mark.parametrize("seed", range(3))
def test_of_three_exits_nearly_the_best_is_found(seed: int) -> None:
    statistics = random_statistics(25, 3, seed=seed)
    for budget in (0.6, 1.0, 2.0):
        thresholds = solve_thresholds(statistics, COSTS, budget)
        assert statistics.accuracy(thresholds) >= best_of_all(statistics, COSTS, budget) - 1.01 / 25


def test_a_budget_beyond_the_last_exit_does_not_bind() -> None:
    statistics = random_statistics(200)
    assert solve_thresholds(statistics, COSTS, 10.0, search=False) == [2.0, 2.0, 0.0]
    thresholds = solve_thresholds(statistics, COSTS, 10.0)
    assert statistics.accuracy(thresholds) >= statistics.accuracy([2.0, 2.0, 0.0])


def labelled(model: DVT, images: int, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Images whose label is mostly the prediction of the last exit."""
    pixels = random_images(model, images)
    with torch.no_grad():
        labels = model(pixels)[-1].argmax(dim=1)
    labels[::5] = 0
    return list(zip(pixels.split(batch), labels.split(batch), strict=True))


@pytest.mark.parametrize("kind", ["nano", "deit"])
def test_a_model_keeps_a_budget_of_gmacs(kind: str) -> None:
    model = exit_model(kind)
    loader = labelled(model, 60, 16)
    costs = exit_gmacs(model)
    budget = (costs[0] + costs[-1]) / 2
    thresholds = calibrate_exits(model, loader, budget_gmacs=budget)
    index = EarlyExit(model, thresholds)(torch.cat([images for images, _ in loader]))[1]
    spent = float(torch.tensor(costs)[index].mean())
    assert costs[0] < spent <= budget * (1 + 1e-6)
    assert all(isinstance(threshold, float) for threshold in thresholds)
    assert thresholds == calibrate_exits(model, iter(loader), budget_gmacs=budget)


def test_a_model_keeps_a_budget_of_milliseconds() -> None:
    """Extreme budgets, whose result does not depend on the clock; the loader is an iterator."""
    model = exit_model("nano")
    loader = labelled(model, 20, 8)
    assert calibrate_exits(model, iter(loader), budget_ms=1e6, search=False) == [2.0, 0.0]
    with pytest.raises(UserError, match=r"budget_ms=1e-09 is less than the first exit costs; .* cost .* ms an image"):
        calibrate_exits(model, iter(loader), budget_ms=1e-9)


def test_later_exits_take_longer() -> None:
    model = exit_model("deit").train()
    times = exit_latency_ms(model, random_images(model, 4), repeats=3)
    assert len(times) == 3
    assert 0 < times[0] < times[1] < times[2]
    assert model.training
    with pytest.raises(ValueError, match="images is empty"):
        exit_latency_ms(model, random_images(model, 0))


def test_budgets_that_make_no_sense() -> None:
    model = exit_model("nano")

    def untouched() -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("a wrong budget is found before the images are read")
        yield

    with pytest.raises(UserError, match="needs one budget, and none was given; give budget_gmacs or budget_ms"):
        calibrate_exits(model, untouched())
    with pytest.raises(UserError, match="needs one budget, and both were given"):
        calibrate_exits(model, untouched(), budget_gmacs=1.0, budget_ms=1.0)
    for budget in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"budget_gmacs=.* is less than the first exit costs; the exits cost"):
            calibrate_exits(model, untouched(), budget_gmacs=budget)
    with pytest.raises(UserError, match="loader gave no images"):
        calibrate_exits(model, [], budget_gmacs=1.0)
    with pytest.raises(UserError, match="loader gave no images"):
        calibrate_exits(model, [], budget_ms=1.0)
    with pytest.raises(UserError, match="vit_nano_patch2_8 has no exits"):
        calibrate_exits(create_model("vit_nano_patch2_8"), untouched(), budget_gmacs=1.0)
