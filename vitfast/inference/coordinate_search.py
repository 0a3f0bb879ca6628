"""Better thresholds within a budget, one or two at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitfast.inference.exit_statistics import ExitStatistics
from vitfast.inference.exit_thresholds import NEVER

_CANDIDATES = 32
_ROUNDS = 10


def coordinate_search(
    statistics: ExitStatistics, costs: Sequence[float], budget: float, thresholds: Sequence[float]
) -> list[float]:
    """Improves thresholds on a set of images, as long as it helps.

    One threshold alone can hardly move where the budget is spent: what it costs, another has to save. So for every
    ordered pair of thresholds the first is tried at 32 quantiles of its exit's confidences (and at "none leaves", and
    where it is), and the best value of the second is then found exactly, among all that make a difference, by sorting.
    The best of all these is kept, and the pairs start anew. Of equally accurate thresholds the cheaper win. Where there
    are only two exits, the one threshold is found exactly.

    Args:
        statistics: what the exits said.
        costs: of an image that leaves at each exit, the exits before included.
        budget: what an image may cost on average.
        thresholds: where to begin, within the budget.

    Returns:
        One number an exit, within the budget, and no less accurate on this set.
    """
    free = range(statistics.num_exits - 1)  # the last one is not read
    pairs = [(a, b) for a in free for b in free if a != b] or [(0, 0)]
    candidates = [_quantiles(confidence) for confidence in statistics.confidence[:-1]]
    best = list(thresholds)
    best_score = (statistics.accuracy(best), -statistics.cost(best, costs))
    for _ in range(_ROUNDS):
        start_score = best_score
        for a, b in pairs:
            fixed = list(best)
            for value in [best[a], *candidates[a]]:
                fixed[a] = value
                fixed[b] = best[b]
                trial = list(fixed)
                found = _best_value(statistics, costs, budget, trial, b)
                if found is None:
                    continue
                trial[b] = found
                score = (statistics.accuracy(trial), -statistics.cost(trial, costs))
                if score > best_score:
                    best, best_score = trial, score
        if best_score == start_score:
            break
    return best


def _quantiles(confidence: Tensor) -> list[float]:
    """Confidences that occur, evenly spread over the images ``[n]``, and one that does not."""
    ordered = confidence.sort().values
    places = torch.linspace(0, len(ordered) - 1, _CANDIDATES, dtype=torch.float64).round().long()
    return [*ordered[places].unique().tolist(), NEVER]


def _best_value(
    statistics: ExitStatistics, costs: Sequence[float], budget: float, thresholds: Sequence[float], index: int
) -> float | None:
    """Finds the threshold of exit ``index`` that is most accurate within the budget, the others being given.

    Returns:
        The value, or None if with every value the budget is exceeded.
    """
    prices = torch.tensor(list(costs), dtype=torch.float64)
    # where images leave if none leaves here; those that leave earlier do so in any case
    without = statistics.exit_index([*thresholds[:index], NEVER, *thresholds[index + 1 :]])
    reaches = without > index
    confidence, order = statistics.confidence[index, reaches].sort(descending=True)
    right = statistics.correct.gather(0, without[None])[0]
    gained = statistics.correct[index, reaches].long() - right[reaches].long()
    saved = prices[without[reaches]] - prices[index]
    zero = torch.zeros(1)
    # entry m: the m most confident of those that come here leave
    right_m = right.sum() + torch.cat([zero.long(), gained[order].cumsum(dim=0)])
    cost_m = (prices[without].sum() - torch.cat([zero.double(), saved[order].cumsum(dim=0)])) / statistics.images
    # images that are equally confident leave together: m is possible where the next one is less confident
    possible = torch.ones_like(right_m, dtype=torch.bool)
    possible[1:-1] = confidence[1:] < confidence[:-1]
    possible &= cost_m <= budget * (1 + 1e-12)
    if not possible.any():
        return None
    right_m = right_m.where(possible, -1)
    # of the equally accurate the cheapest, which is the last: the more leave here, the less it costs
    best = len(right_m) - 1 - int(right_m.flip(0).argmax())
    return NEVER if best == 0 else float(confidence[best - 1])
