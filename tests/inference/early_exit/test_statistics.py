"""Exit statistics and the sweep of thresholds, against the rule of the released code, image by image."""

from __future__ import annotations

import math

import pytest
import torch

from support.exit_models import exit_model, random_images, random_statistics
from vitfast import EarlyExit, UserError
from vitfast.inference.early_exit import ExitStatistics, collect_exit_statistics, geometric_sweep
from vitfast.inference.early_exit.statistics import geometric_thresholds

STATISTICS = ExitStatistics(
    confidence=torch.tensor([[0.9, 0.5, 0.4, 0.3], [0.2, 0.8, 0.4, 0.3], [0.9, 0.9, 0.9, 0.9]]),
    correct=torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0]]).bool(),
)


@pytest.mark.parametrize(
    ("thresholds", "exits", "accuracy", "cost"),
    [
        ([0.6, 0.6, 0.0], [0, 1, 2, 2], 0.75, 5.75),
        ([0.5, 0.4, 0.0], [0, 0, 1, 2], 0.5, 3.5),
        ([0.5, 0.4, 5.0], [0, 0, 1, 2], 0.5, 3.5),
        ([-math.inf, 0.0, 0.0], [0, 0, 0, 0], 0.75, 1.0),
        ([math.inf, math.inf, math.inf], [2, 2, 2, 2], 0.5, 10.0),
        ([math.inf, -math.inf, 0.0], [1, 1, 1, 1], 0.5, 2.0),
    ],
)
def test_thresholds_are_evaluated(thresholds: list[float], exits: list[int], accuracy: float, cost: float) -> None:
    assert STATISTICS.exit_index(thresholds).tolist() == exits
    assert STATISTICS.shares(thresholds) == [exits.count(index) / 4 for index in range(3)]
    assert STATISTICS.accuracy(thresholds) == accuracy
    assert STATISTICS.cost(thresholds, [1.0, 2.0, 10.0]) == pytest.approx(cost)


def test_a_number_that_float32_lacks_is_the_same_to_early_exit() -> None:
    """0.9 in float64 is above 0.9 in float32."""
    assert float(torch.tensor(0.7)) < 0.7
    statistics = ExitStatistics(torch.full((2, 1), 0.7), torch.ones(2, 1).bool())
    assert statistics.exit_index([0.7, 0.0]).tolist() == [0]
    assert (torch.tensor([0.7]) >= 0.7).tolist() == [True]


@pytest.mark.parametrize("kind", ["nano", "deit"])
def test_statistics_agree_with_early_exit(kind: str) -> None:
    model = exit_model(kind).train()
    images = random_images(model, 30)
    labels = torch.arange(30) % 5
    batches = [(images[:0], labels[:0]), (images[:13], labels[:13]), (images[13:], labels[13:])]
    statistics = collect_exit_statistics(model, batches)
    assert model.training
    assert (statistics.num_exits, statistics.images) == (model.num_exits, 30)
    thresholds = [float(confidence.median()) for confidence in statistics.confidence]
    thresholds = [threshold - 1e-4 for threshold in thresholds]
    logits, exit_index = EarlyExit(model, thresholds)(images)
    assert statistics.exit_index(thresholds).tolist() == exit_index.tolist()
    assert statistics.accuracy(thresholds) == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()))
    assert 0 < statistics.shares(thresholds)[0] < 1


def test_no_images() -> None:
    with pytest.raises(UserError, match="loader gave no images"):
        collect_exit_statistics(exit_model("nano"), [])


def test_logits_that_are_not_finite() -> None:
    model = exit_model("nano")
    torch.nn.init.constant_(model.exits[1].head.bias, math.nan)
    with pytest.raises(UserError, match=r"the logits are not finite, by exit for \[0, 3\] of 3 images"):
        collect_exit_statistics(model, [(random_images(model, 3), torch.zeros(3, dtype=torch.int64))])


def test_thresholds_of_another_model() -> None:
    with pytest.raises(UserError, match="thresholds has 2 numbers, the model has 3 exits"):
        random_statistics(5).shares([0.5, 0.0])


COSTS = [0.468, 1.446, 3.455]


def released_rule(statistics: ExitStatistics, ratio: float) -> tuple[list[float], list[float], float, float]:
    """Thresholds, shares, cost and accuracy (systems of MSDNet and DVT): image by image."""
    images, num_exits = statistics.images, statistics.num_exits
    confidence, correct = statistics.confidence.tolist(), statistics.correct.tolist()
    powers = [ratio**k for k in range(1, num_exits + 1)]
    thresholds = [2.0] * (num_exits - 1) + [0.0]
    gone: set[int] = set()
    for k in range(num_exits - 1):
        wanted = math.floor(images * powers[k] / sum(powers) + 1e-9)
        count = 0
        # with ties fewer images may remain than should leave: then all leave, in the original code none
        wanted = min(wanted, images - len(gone))
        for image in sorted(range(images), key=lambda image: -confidence[k][image]):
            if image not in gone:
                count += 1
                if count == wanted:
                    thresholds[k] = confidence[k][image]
                    break
        gone |= {image for image in range(images) if confidence[k][image] >= thresholds[k]}
    leaves = [
        next(k for k in range(num_exits) if k == num_exits - 1 or confidence[k][image] >= thresholds[k])
        for image in range(images)
    ]
    shares = [leaves.count(k) / images for k in range(num_exits)]
    cost = sum(COSTS[k] for k in leaves) / images
    return thresholds, shares, cost, sum(correct[k][image] for image, k in enumerate(leaves)) / images


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("images", [1, 2, 7, 200])
def test_the_59_points(images: int, digits: int | None) -> None:
    statistics = random_statistics(images, digits=digits)
    points = geometric_sweep(statistics, COSTS)
    assert len(points) == 59
    for p, point in enumerate(points, start=1):
        thresholds, shares, cost, accuracy = released_rule(statistics, p / 20)
        assert point.thresholds == thresholds
        assert point.shares == pytest.approx(shares)
        assert point.cost == pytest.approx(cost)
        assert point.accuracy == pytest.approx(accuracy)


def test_the_shares_follow_the_powers() -> None:
    shares = geometric_sweep(random_statistics(10_000, 4), [1.0, 2.0, 3.0, 4.0])[9].shares  # q = 0.5
    assert shares == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=2e-4)


def test_the_larger_the_ratio_the_later_they_leave() -> None:
    points = geometric_sweep(random_statistics(500), COSTS)
    costs = [point.cost for point in points]
    assert costs == sorted(costs)
    first = [point.shares[0] for point in points]
    assert first == sorted(first, reverse=True)
    assert costs[0] < 0.6 < 2.5 < costs[-1]


def test_the_extremes() -> None:
    statistics = random_statistics(50)
    assert statistics.shares(geometric_thresholds(statistics, math.exp(-60.0))) == [1.0, 0.0, 0.0]
    assert geometric_thresholds(statistics, math.exp(60.0)) == [2.0, 2.0, 0.0]


def test_a_share_that_is_a_whole_number_of_images() -> None:
    """3 x 1/3 and 30 x 0.1 are not rounded down to one less."""
    statistics = random_statistics(3)
    assert statistics.shares(geometric_thresholds(statistics, 1.0)) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    two = random_statistics(30, 2)
    assert two.shares(geometric_thresholds(two, 9.0)) == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("exit_number", [0, 1])
def test_the_higher_a_threshold_the_fewer_leave(exit_number: int) -> None:
    statistics = random_statistics(300)
    shares = []
    for threshold in torch.linspace(-0.1, 1.1, 25).tolist():
        thresholds = [0.8, 0.7, 0.0]
        thresholds[exit_number] = threshold
        shares.append(statistics.shares(thresholds)[exit_number])
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[12] > shares[-1] == 0
