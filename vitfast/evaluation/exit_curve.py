"""Accuracy of early exit against what it costs, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitfast.figure import new_figure, save_figure


@dataclass(frozen=True)
class CurvePoint:
    """One way to run a model with exits.

    Attributes:
        images_per_s: measured.
        gmacs: mean of an image, 1e9 multiply-adds.
        top1: accuracy, 0..1.
        shares: of the images that leave at each exit, 0..1.
    """

    images_per_s: float
    gmacs: float
    top1: float
    shares: list[float]


def draw_exit_curve(
    points: Sequence[CurvePoint],
    all_exits: CurvePoint,
    chosen: CurvePoint | None,
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draws accuracy against images/s and against cost, and where the images leave; writes the picture as a whole.

    Args:
        points: thresholds from one end of the sweep to the other.
        all_exits: the same model without early exit.
        chosen: the thresholds that were chosen; None: none.
        path: the PNG file.
        title: stands above.
    """
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(15, 4.4, layout="constrained")
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(1, 3)
    for axes, name, label in zip(panels, ("images_per_s", "gmacs"), ("images/s", "GMACs an image"), strict=False):
        _draw_accuracy(axes, points, all_exits, chosen, name)
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    _draw_shares(panels[2], points)
    panels[2].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    save_figure(figure, path)


def _draw_accuracy(
    axes: Any, points: Sequence[CurvePoint], all_exits: CurvePoint, chosen: CurvePoint | None, name: str
) -> None:
    axes.axhline(all_exits.top1, color="tab:gray", linestyle=":", linewidth=1)
    places = [getattr(point, name) for point in points]
    axes.plot(places, [point.top1 for point in points], "o-", markersize=3, linewidth=1, label="early exit")
    label = f"all exits {all_exits.top1:.2%}"
    axes.plot([getattr(all_exits, name)], [all_exits.top1], "*", color="tab:green", markersize=14, label=label)
    if chosen is not None:
        label = f"chosen {chosen.top1:.2%}"
        axes.plot([getattr(chosen, name)], [chosen.top1], "D", color="tab:red", markersize=8, label=label)


def _draw_shares(axes: Any, points: Sequence[CurvePoint]) -> None:
    """The cheapest on the left; each exit a band."""
    ordered = sorted(points, key=lambda point: point.gmacs)
    bands = list(zip(*(point.shares for point in ordered), strict=True))
    names = [f"leave at exit {number}" for number in range(1, len(bands) + 1)]
    axes.stackplot([point.gmacs for point in ordered], *bands, labels=names, alpha=0.8)
    axes.set_xlabel("GMACs an image")
    axes.set_ylabel("share of the images")
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right")
