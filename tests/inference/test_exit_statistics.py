"""What the exits say about images, and what follows for thresholds."""

from __future__ import annotations

import math

import pytest
import torch

from support.exit_models import exit_model, random_images, random_statistics
from vitfast import EarlyExit, UserError
from vitfast.inference import ExitStatistics, collect_exit_statistics

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
def test_thresholds_are_judged(thresholds: list[float], exits: list[int], accuracy: float, cost: float) -> None:
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
def test_it_says_what_early_exit_does(kind: str) -> None:
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
