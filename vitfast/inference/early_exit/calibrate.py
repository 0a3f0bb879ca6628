"""Calibration: thresholds that make early exit most accurate within a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.early_exit.cost import exit_gmacs, exit_latency_ms
from vitfast.inference.early_exit.early_exit import NEVER, as_exit_model, device_of
from vitfast.inference.early_exit.statistics import ExitStatistics, collect_exit_statistics, geometric_thresholds

# q = exp(±60) sends all of any number of images to the first or to the last exit
_LOG_RATIO_BOUND = 60.0
_BISECTIONS = 60

_SEARCH_CANDIDATES = 32
_SEARCH_ROUNDS = 10


def calibrate_exits(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    budget_gmacs: float | None = None,
    budget_ms: float | None = None,
    search: bool = True,
) -> list[float]:
    """Finds the thresholds at which a model with exits is most accurate within a budget.

    Every exit runs once over the loader. See ``solve_thresholds`` for the method, and ``exit_gmacs`` and
    ``exit_latency_ms`` for the cost of an exit. Under ``torch.autocast`` the model is calibrated and measured in that
    precision.

    Args:
        model: a model with exits, such as ``create_model("dvt_t2t_vit_12")``, on the device where it will run.
        loader: held-out images with labels: (images ``[B, in_chans, img_size, img_size]``, labels ``[B]``). On its
            training set a model is overconfident.
        budget_gmacs: mean cost of an image in 1e9 multiply-adds; or
        budget_ms: mean time of an image in milliseconds, measured here in batches of the loader's size.
        search: improve the geometric thresholds by search.

    Returns:
        One threshold per exit: an image leaves at the first exit whose top softmax probability is at least that. No
        image leaves at 2.0. The last is 0.0.

    Raises:
        UserError: the model has no exits; not exactly one budget is given, or it is below the cost of the first exit;
            the loader has no images.
    """
    as_exit_model(model)
    given = {"budget_gmacs": budget_gmacs, "budget_ms": budget_ms}
    budgets = [(name, value) for name, value in given.items() if value is not None]
    if len(budgets) != 1:
        problem = "both were given" if budgets else "none was given"
        raise UserError(f"calibrate_exits needs one budget, and {problem}; give budget_gmacs or budget_ms")
    name, budget = budgets[0]
    if name == "budget_gmacs":
        costs = exit_gmacs(model)
    else:
        batches = iter(loader)
        first = next(batches, None)
        if first is None or len(first[0]) == 0:
            raise UserError("loader gave no images; calibrate thresholds on held-out images with labels")
        costs = exit_latency_ms(model, first[0].to(device_of(model)))
        loader = itertools.chain([first], batches)  # it may be an iterator
    check_budget(name, budget, costs)
    return solve_thresholds(collect_exit_statistics(model, loader), costs, budget, search=search)


def check_budget(name: str, budget: float, costs: Sequence[float]) -> None:
    """Checks the argument ``name`` (``budget_gmacs`` or ``budget_ms``) against the cumulative costs of the exits.

    Raises:
        UserError: the budget is below the cost of the first exit, or NaN.
    """
    if not budget >= costs[0]:
        unit = name.removeprefix("budget_")
        steps = ", ".join(f"{cost:.4g}" for cost in costs)
        raise UserError(f"{name}={budget:g} is less than the first exit costs; the exits cost {steps} {unit} an image")


def solve_thresholds(
    statistics: ExitStatistics, costs: Sequence[float], budget: float, *, search: bool = True
) -> list[float]:
    """Finds thresholds for a budget from the statistics of a set of images.

    Bisection over q finds the geometric thresholds (see ``geometric_thresholds``) that spend most of the budget. With
    ``search``, ``_coordinate_search`` improves them within the budget. The result is deterministic. A budget above the
    cost of the last exit does not bind; the search then maximizes accuracy alone.

    Args:
        statistics: statistics of the images.
        costs: cumulative cost of each exit.
        budget: mean cost per image, in the same unit; at least ``costs[0]``.
        search: improve the geometric thresholds by search.
    """
    low, high = -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND
    thresholds = geometric_thresholds(statistics, math.exp(high))
    if statistics.cost(thresholds, costs) > budget:
        thresholds = geometric_thresholds(statistics, math.exp(low))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            candidate = geometric_thresholds(statistics, math.exp(middle))
            if statistics.cost(candidate, costs) <= budget:
                low, thresholds = middle, candidate
            else:
                high = middle
    return _coordinate_search(statistics, costs, budget, thresholds) if search else thresholds


def _coordinate_search(
    statistics: ExitStatistics, costs: Sequence[float], budget: float, thresholds: Sequence[float]
) -> list[float]:
    """Improves thresholds that keep the budget, until a round over all pairs of thresholds brings nothing.

    Once the budget is spent, one threshold can hardly move alone: another has to save what it costs. For every ordered
    pair the first threshold takes 32 quantiles of its exit's confidences (and NEVER, and its present value); the best
    value of the second is then found exactly. Ties in accuracy go to the cheaper thresholds. With two exits the only
    threshold is optimal.
    """
    free = range(statistics.num_exits - 1)  # the last threshold is ignored
    pairs = [(a, b) for a in free for b in free if a != b] or [(0, 0)]
    candidates = [_quantiles(confidence) for confidence in statistics.confidence[:-1]]
    best = list(thresholds)
    best_score = (statistics.accuracy(best), -statistics.cost(best, costs))
    for _ in range(_SEARCH_ROUNDS):
        start_score = best_score
        for a, b in pairs:
            for value in [best[a], *candidates[a]]:
                trial = list(best)
                trial[a] = value
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
    """Evenly spaced quantiles of confidences ``[n]``, and NEVER."""
    ordered = confidence.sort().values
    places = torch.linspace(0, len(ordered) - 1, _SEARCH_CANDIDATES, dtype=torch.float64).round().long()
    return [*ordered[places].unique().tolist(), NEVER]


def _best_value(
    statistics: ExitStatistics, costs: Sequence[float], budget: float, thresholds: Sequence[float], index: int
) -> float | None:
    """Finds the most accurate threshold of exit ``index`` with the others fixed; None if all exceed the budget."""
    prices = torch.tensor(list(costs), dtype=torch.float64)
    # the exits at which images leave if none leaves at this one
    without = statistics.exit_index([*thresholds[:index], NEVER, *thresholds[index + 1 :]])
    reaches = without > index
    confidence, order = statistics.confidence[index, reaches].sort(descending=True)
    right = statistics.correct.gather(0, without[None])[0]
    gained = statistics.correct[index, reaches].long() - right[reaches].long()
    saved = prices[without[reaches]] - prices[index]
    zero = torch.zeros(1)
    # entry m: the m most confident of the images that reach this exit leave
    right_m = right.sum() + torch.cat([zero.long(), gained[order].cumsum(dim=0)])
    cost_m = (prices[without].sum() - torch.cat([zero.double(), saved[order].cumsum(dim=0)])) / statistics.images
    # equally confident images leave together: m is possible where the next image is less confident
    possible = torch.ones_like(right_m, dtype=torch.bool)
    possible[1:-1] = confidence[1:] < confidence[:-1]
    possible &= cost_m <= budget * (1 + 1e-12)
    if not possible.any():
        return None
    right_m = right_m.where(possible, -1)
    # the last of equally accurate m is the cheapest: cost falls with the number of images that leave here
    best = len(right_m) - 1 - int(right_m.flip(0).argmax())
    return NEVER if best == 0 else float(confidence[best - 1])
