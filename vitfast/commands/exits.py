"""``vitfast exits``: calibrates the exits of a checkpoint.

Measures every exit on a held-out split, prints accuracy and cost for 59 choices of thresholds, finds the most accurate
ones within the budget (``budget_gmacs`` or ``budget_ms``, mean per image) and writes them into the checkpoint's
manifest. Without a budget it only prints.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitfast.commands.command_options import ExitsOptions
from vitfast.device import autocast
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.checkpoint_data import loader_of_split
from vitfast.inference import ExitPoint, collect_exit_statistics, exit_gmacs, exit_latency_ms, geometric_sweep
from vitfast.inference.early_exit.calibrate import check_budget, solve_thresholds
from vitfast.inference.early_exit.early_exit import as_exit_model
from vitfast.text_table import percent, text_table
from vitfast.weights.checkpoint import update_manifest


def run(options: ExitsOptions) -> int:
    """Runs the command; returns the exit code."""
    if options.budget_gmacs is not None and options.budget_ms is not None:
        raise UserError("budget_gmacs and budget_ms are both given; give one")
    trained = options.load()
    as_exit_model(trained.model)  # before the images are opened
    loader = loader_of_split(trained, options.data, options.split)
    with autocast(trained.device, options.precision):
        if options.budget_ms is not None:
            costs, unit = exit_latency_ms(trained.model, next(iter(loader))[0].to(trained.device)), "ms"
        else:
            costs, unit = exit_gmacs(trained.model), "GMACs"
        budget = options.budget_gmacs if options.budget_ms is None else options.budget_ms
        if budget is not None:
            check_budget(f"budget_{unit.lower()}", budget, costs)
        statistics = collect_exit_statistics(trained.model, loader)
    accuracies = map(percent, statistics.exit_accuracies())
    lines = [
        f"model    {trained.describe()}",
        f"split    {options.split}, {statistics.images:,} images",
        "",
        text_table(
            ("exit", "top-1", f"{unit} an image"),
            [(f"{number}", *row) for number, row in enumerate(zip(accuracies, map(_number, costs), strict=True), 1)],
        ),
        "",
        _curve(geometric_sweep(statistics, costs), unit),
    ]
    if budget is not None:
        thresholds = solve_thresholds(statistics, costs, budget, search=options.search)
        chosen = ExitPoint.measure(statistics, thresholds, costs)
        with explain_os_error(f"the thresholds cannot be stored in {trained.checkpoint}"):
            update_manifest(trained.checkpoint, {"exit_thresholds": thresholds})
        lines += [
            "",
            f"for a budget of {budget:g} {unit} an image, stored in {trained.checkpoint}:",
            "",
            _curve([chosen], unit),
        ]
    print("\n".join(lines))
    return 0


def threshold_table(points: Sequence[ExitPoint], columns: dict[str, list[str]]) -> str:
    """Formats a row for each choice of thresholds: thresholds, shares of the exits, further columns and top-1.

    Equal rows are shown once.
    """
    exits = range(1, len(points[0].thresholds) + 1)
    header = (*(f"threshold {number}" for number in exits[:-1]), *(f"leave at {number}" for number in exits))
    rows = [
        (
            *(f"{threshold:.4f}" if threshold <= 1 else "none" for threshold in point.thresholds[:-1]),
            *map(percent, point.shares),
            *cells,
            percent(point.accuracy),
        )
        for point, *cells in zip(points, *columns.values(), strict=True)
    ]
    return text_table((*header, *columns, "top-1"), list(dict.fromkeys(rows)), left=0)


def _curve(points: list[ExitPoint], unit: str) -> str:
    return threshold_table(points, {f"{unit} an image": [_number(point.cost) for point in points]})


def _number(cost: float) -> str:
    return f"{cost:.3f}" if cost >= 1 else f"{cost:.3g}"
