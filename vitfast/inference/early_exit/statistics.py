"""Confidence and correctness of every exit on a set of images, from which any thresholds can be evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.early_exit.early_exit import (
    ALWAYS,
    NEVER,
    as_exit_model,
    check_thresholds,
    confidence_of,
    device_of,
    evaluation_mode,
)

# the released code of the Dynamic Vision Transformer: q = p / 20 for p = 1 ... 59
SWEEP_RATIOS = tuple(p / 20 for p in range(1, 60))


@dataclass(frozen=True)
class ExitStatistics:
    """Outputs of E exits for n images, on the CPU."""

    confidence: Tensor  # top softmax probabilities, [E, n] float32
    correct: Tensor  # whether the top class is the label, [E, n] bool

    @property
    def num_exits(self) -> int:
        """Number of exits, E."""
        return self.confidence.shape[0]

    @property
    def images(self) -> int:
        """Number of images, n."""
        return self.confidence.shape[1]

    def exit_index(self, thresholds: Sequence[float]) -> Tensor:
        """Returns the exit, from 0, at which each image leaves, ``[n]``: the first that reaches its threshold."""
        # in float32, like the comparison in EarlyExit
        limits = torch.tensor(check_thresholds(thresholds, self.num_exits), dtype=self.confidence.dtype)
        leaves = self.confidence >= limits[:, None]
        leaves[-1] = True
        return leaves.int().argmax(dim=0)  # the first of equal values

    def shares(self, thresholds: Sequence[float]) -> list[float]:
        """Returns the share of the images that leaves at each exit, 0..1."""
        counts = self.exit_index(thresholds).bincount(minlength=self.num_exits)
        return (counts.double() / self.images).tolist()

    def accuracy(self, thresholds: Sequence[float]) -> float:
        """Returns the top-1 accuracy of early exit, 0..1."""
        return float(self.correct.gather(0, self.exit_index(thresholds)[None]).double().mean())

    def exit_accuracies(self) -> list[float]:
        """Returns the top-1 accuracy of each exit, 0..1."""
        return self.correct.double().mean(dim=1).tolist()

    def cost(self, thresholds: Sequence[float], costs: Sequence[float]) -> float:
        """Returns the mean cost per image, given the cumulative ``costs`` of the exits."""
        return sum(share * cost for share, cost in zip(self.shares(thresholds), costs, strict=True))


@dataclass(frozen=True)
class ExitPoint:
    """Early exit with given thresholds on a set of images."""

    thresholds: list[float]  # one per exit
    shares: list[float]  # of the images that leave at each exit, 0..1
    cost: float  # mean per image, in the unit of the given costs
    accuracy: float  # top-1, 0..1

    @classmethod
    def measure(cls, statistics: ExitStatistics, thresholds: Sequence[float], costs: Sequence[float]) -> ExitPoint:
        """Evaluates thresholds on the statistics of a set of images."""
        return cls(
            list(thresholds),
            statistics.shares(thresholds),
            statistics.cost(thresholds, costs),
            statistics.accuracy(thresholds),
        )


def collect_exit_statistics(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> ExitStatistics:
    """Runs all exits of a model once over images ``[B, in_chans, img_size, img_size]`` and labels ``[B]``.

    Raises:
        UserError: the model has no exits, the loader has no images, or logits are not finite.
    """
    as_exit_model(model)
    device = device_of(model)
    confidence: list[Tensor] = []
    correct: list[Tensor] = []
    with evaluation_mode(model), torch.inference_mode():
        for images, labels in loader:
            if len(labels) == 0:
                continue
            labels = labels.to(device, non_blocking=True)
            outputs = model(images.to(device, non_blocking=True))
            confidence.append(torch.stack([confidence_of(logits) for logits in outputs]).cpu())
            correct.append(torch.stack([logits.argmax(dim=1) == labels for logits in outputs]).cpu())
    if not confidence:
        raise UserError("loader gave no images; calibrate thresholds on held-out images with labels")
    # concatenated outside inference mode, which makes them ordinary tensors
    statistics = ExitStatistics(torch.cat(confidence, dim=1), torch.cat(correct, dim=1))
    bad = statistics.confidence.isnan().sum(dim=1).tolist()
    if any(bad):
        raise UserError(f"the logits are not finite, by exit for {bad} of {statistics.images} images; fix the model")
    return statistics


def geometric_thresholds(statistics: ExitStatistics, ratio: float) -> list[float]:
    """Finds thresholds for which the shares of the exits are nearly proportional to 1, q, q² and so on.

    At each exit in turn the ``floor(n * share)`` most confident of the remaining images leave, along with those that
    are as confident as the last of them; all leave if fewer remain. The rest leave at the last exit. ``ratio`` is q,
    above 0.
    """
    # softmax of k * log(q) is q^k / sum(q^k) without overflow
    weights = torch.arange(statistics.num_exits, dtype=torch.float64) * math.log(ratio)
    counts = (weights.softmax(dim=0) * statistics.images + 1e-9).floor().long().tolist()
    confidence = statistics.confidence
    thresholds: list[float] = []
    for index, count in enumerate(counts[:-1]):
        remaining = confidence.shape[1]
        if count == 0 or remaining == 0:
            thresholds.append(NEVER)
            continue
        # the count-th largest
        threshold = confidence[index].kthvalue(remaining - min(count, remaining) + 1).values
        thresholds.append(float(threshold))
        confidence = confidence[:, ~(confidence[index] >= threshold)]
    return [*thresholds, ALWAYS]


def geometric_sweep(statistics: ExitStatistics, costs: Sequence[float]) -> list[ExitPoint]:
    """Evaluates the 59 threshold settings of DVT's released code; ``costs``: cumulative cost of each exit."""
    return [ExitPoint.measure(statistics, geometric_thresholds(statistics, ratio), costs) for ratio in SWEEP_RATIOS]
