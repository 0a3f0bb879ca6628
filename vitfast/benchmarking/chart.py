"""The findings of engine comparisons as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vitfast.benchmarking.comparison import Outcome
from vitfast.figure import new_figure, save_figure

_OWN, _OTHER = "tab:blue", "tab:gray"


def draw_chart(outcomes: Sequence[Outcome], path: str | os.PathLike[str], title: str) -> None:
    """Draws images per second of every engine, a panel for each comparison, and writes the picture as a whole.

    A line on each bar goes from the lower to the upper quartile; a dashed one is the arithmetic limit.

    Args:
        outcomes: of engine comparisons, at least one.
        path: the PNG file.
        title: stands above, e.g. the machine.

    Raises:
        OSError: the picture cannot be written.
    """
    columns = min(3, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = new_figure(5.2 * columns, 0.9 + 2.9 * rows, dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, outcome in zip(panels, outcomes, strict=False):
        images = outcome.images or 1
        engines = [one for one in outcome.standings if not one.is_limit][::-1]
        rates = [images / one.time_ms.median * 1e3 for one in engines]
        lower = [rate - images / one.time_ms.upper * 1e3 for rate, one in zip(rates, engines, strict=True)]
        upper = [images / one.time_ms.lower * 1e3 - rate for rate, one in zip(rates, engines, strict=True)]
        colours = [_OWN if one.subject == "vitfast" else _OTHER for one in engines]
        names = [one.subject for one in engines]
        bars = axes.barh(names, rates, xerr=[lower, upper], color=colours, ecolor="black", height=0.7)
        axes.bar_label(bars, fmt="%.3g", padding=4, fontsize=8)
        for limit in (one.images_per_s for one in outcome.standings if one.is_limit):
            if limit is not None:
                axes.axvline(limit, color="black", linestyle="--", linewidth=1)
        axes.set_title(outcome.title.removesuffix(", engines"), fontsize=9)
        axes.set_xlabel("images/s", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.15)
    for axes in panels[len(outcomes) :]:
        axes.set_visible(False)
    save_figure(figure, path)
