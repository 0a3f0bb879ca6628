"""The released code's sweep of thresholds, against its rule spelled out image by image."""

from __future__ import annotations

import math

import pytest
import torch

from support.exit_models import random_statistics
from vitfast.inference import ExitStatistics, geometric_sweep
from vitfast.inference.exit_sweep import geometric_thresholds

COSTS = [0.468, 1.446, 3.455]


def released_rule(statistics: ExitStatistics, ratio: float) -> tuple[list[float], list[float], float, float]:
    """Thresholds, shares, cost and accuracy (systems of MSDNet and DVT): the images are walked through one by one."""
    images, num_exits = statistics.images, statistics.num_exits
    confidence, correct = statistics.confidence.tolist(), statistics.correct.tolist()
    powers = [ratio**k for k in range(1, num_exits + 1)]
    thresholds = [2.0] * (num_exits - 1) + [0.0]
    gone: set[int] = set()
    for k in range(num_exits - 1):
        wanted = math.floor(images * powers[k] / sum(powers) + 1e-9)
        count = 0
        # where many are equally confident, fewer may be left than should leave: then all do, and in the original none
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
