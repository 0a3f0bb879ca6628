"""Thresholds from one number: the share of images that leaves at exit k is proportional to q to the power of k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vitfast.inference.exit_statistics import ExitStatistics
from vitfast.inference.exit_thresholds import ALWAYS, NEVER

# the released code of the Dynamic Vision Transformer: q = p / 20 for p = 1 ... 59
SWEEP_RATIOS = tuple(p / 20 for p in range(1, 60))


@dataclass(frozen=True)
class ExitPoint:
    """What thresholds make of a set of images.

    Attributes:
        thresholds: one an exit.
        shares: of the images that leave at each exit, 0..1.
        cost: mean of an image, in the unit of the costs that were given.
        accuracy: top-1, 0..1.
    """

    thresholds: list[float]
    shares: list[float]
    cost: float
    accuracy: float

    @classmethod
    def measure(cls, statistics: ExitStatistics, thresholds: Sequence[float], costs: Sequence[float]) -> ExitPoint:
        """Judges thresholds by what the exits said."""
        return cls(
            list(thresholds),
            statistics.shares(thresholds),
            statistics.cost(thresholds, costs),
            statistics.accuracy(thresholds),
        )


def geometric_thresholds(statistics: ExitStatistics, ratio: float) -> list[float]:
    """Finds the thresholds at which the shares of the exits are nearly proportional to 1, q, q² and so on.

    At each exit in turn, of the n images those leave that have not left before and are the most confident: as many as
    ``floor(n * share)``, and those that are as confident as the last of them. Where so many are not left, all leave.
    The rest leave at the last exit.

    Args:
        statistics: what the exits said.
        ratio: q, above 0.

    Returns:
        One number an exit.
    """
    # q to the power of k over their sum, free of overflow: the largest exponent is taken out
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
    """Judges the 59 thresholds of the released code, from those with which most images leave early.

    Args:
        statistics: what the exits said about a set of images.
        costs: of an image that leaves at each exit, the exits before included: from ``exit_gmacs`` or
            ``exit_latency_ms``.
    """
    return [ExitPoint.measure(statistics, geometric_thresholds(statistics, ratio), costs) for ratio in SWEEP_RATIOS]
