"""Thresholds of a model with exits for a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.coordinate_search import coordinate_search
from vitfast.inference.exit_gmacs import exit_gmacs
from vitfast.inference.exit_latency import exit_latency_ms
from vitfast.inference.exit_model import as_exit_model, device_of
from vitfast.inference.exit_statistics import ExitStatistics, collect_exit_statistics
from vitfast.inference.exit_sweep import geometric_thresholds

# q = exp(±60) sends all of any number of images to the first or to the last exit
_LOG_RATIO_BOUND = 60.0
_BISECTIONS = 60


def calibrate_exits(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    budget_gmacs: float | None = None,
    budget_ms: float | None = None,
    search: bool = True,
) -> list[float]:
    """Finds the thresholds at which a model with exits is most accurate within a budget.

    Every exit runs once over the loader. See ``solve_thresholds`` for how they are found, and ``exit_gmacs`` and
    ``exit_latency_ms`` for what an exit costs. Under ``torch.autocast`` the model is calibrated and measured as it then
    runs.

    Args:
        model: a model with exits, such as ``create_model("dvt_t2t_vit_12")``, on the device where it will run.
        loader: held-out images with labels, as the model will meet them: (images ``[B, in_chans, img_size, img_size]``,
            labels ``[B]``). On its training set a model is too confident.
        budget_gmacs: mean cost of an image in 1e9 multiply-adds; or
        budget_ms: mean time of an image in milliseconds, measured here in batches of the loader's size.
        search: improve the geometric thresholds by search; False: leave them.

    Returns:
        One number an exit: an image leaves at the first exit whose top softmax probability is at least that. 2.0: none
        leaves there. The last is 0.0.

    Raises:
        UserError: the model has no exits; not exactly one budget is given, or less than the first exit costs; the
            loader has no images.
    """
    exits = as_exit_model(model)
    given = {"budget_gmacs": budget_gmacs, "budget_ms": budget_ms}
    budgets = [(name, value) for name, value in given.items() if value is not None]
    if len(budgets) != 1:
        what = "both were given" if budgets else "none was given"
        raise UserError(f"calibrate_exits needs one budget, and {what}; give budget_gmacs or budget_ms")
    name, budget = budgets[0]
    if name == "budget_gmacs":
        costs = exit_gmacs(model)
    else:
        first, loader = _peek(loader)
        costs = exit_latency_ms(model, first.to(device_of(exits)))
    check_budget(name, budget, costs)
    return solve_thresholds(collect_exit_statistics(model, loader), costs, budget, search=search)


def check_budget(name: str, budget: float, costs: Sequence[float]) -> None:
    """Refuses a budget that no image can keep.

    Args:
        name: of the argument, ``budget_gmacs`` or ``budget_ms``.
        budget: what an image may cost on average.
        costs: of an image that leaves at each exit, the exits before included.

    Raises:
        UserError: the budget is less than the first exit costs, or no number.
    """
    if not budget >= costs[0]:
        unit = name.removeprefix("budget_")
        steps = ", ".join(f"{cost:.4g}" for cost in costs)
        raise UserError(f"{name}={budget:g} is less than the first exit costs; the exits cost {steps} {unit} an image")


def solve_thresholds(
    statistics: ExitStatistics, costs: Sequence[float], budget: float, *, search: bool = True
) -> list[float]:
    """Finds thresholds for a budget from what the exits said about a set of images.

    First by bisection, among the geometric thresholds (see ``geometric_thresholds``), those that spend the most within
    the budget. Then, with ``search``, by ``coordinate_search`` from there: on this set no worse, and within the budget.
    The same statistics give the same thresholds. A budget above the last exit's cost does not bind; the search then
    finds the most accurate thresholds of all.

    Args:
        statistics: what the exits said.
        costs: of an image that leaves at each exit, the exits before included.
        budget: what an image may cost on average, in the same unit; at least ``costs[0]``.
        search: improve the geometric thresholds.

    Returns:
        One number an exit.
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
    return coordinate_search(statistics, costs, budget, thresholds) if search else thresholds


def _peek(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Iterable[tuple[Tensor, Tensor]]]:
    """Returns the first images of a loader, and all of it, even if it can be read only once."""
    batches = iter(loader)
    first = next(batches, None)
    if first is None or len(first[0]) == 0:
        raise UserError("loader gave no images; thresholds are found on a held-out set with labels")
    return first[0], itertools.chain([first], batches)
