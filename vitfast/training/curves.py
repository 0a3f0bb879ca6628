"""The learning curves of a run as a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from vitfast.figure import new_figure, save_figure

_COLOURS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}


def draw_curves(metrics: Iterable[dict[str, Any]], path: str | os.PathLike[str], title: str) -> None:
    """Draws loss and top-1 accuracy over the epochs, and writes the picture as a whole.

    The train curve is the mean over an epoch while the weights still change and the images are augmented, so that it
    may lie below the validation curve. The test result is a star. Nothing needs a display.

    Args:
        metrics: lines of ``metrics.jsonl``.
        path: the PNG file.
        title: stands above, e.g. model and data.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lines = list(metrics)
    figure = new_figure(10, 4.2)
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.12, top=0.9, wspace=0.2)
    figure.suptitle(title)
    for axes, key, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 accuracy"), strict=True):
        for split, colour in _COLOURS.items():
            _draw_split(axes, [line for line in lines if line["split"] == split], key, split, colour)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(frameon=False)
        if key == "top1":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
            axes.set_ylim(top=1.01)
    save_figure(figure, path)


def _draw_split(axes: Any, lines: list[dict[str, Any]], key: str, split: str, colour: str) -> None:
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    if not points:
        return
    epochs, values = zip(*points, strict=True)
    last = f"{values[-1]:.2%}" if key == "top1" else f"{values[-1]:.3f}"
    if split == "test":
        axes.plot(epochs[-1:], values[-1:], "*", markersize=13, color=colour, label=f"test {last}", zorder=3)
        return
    label = f"{split} {last}"
    if split == "val" and key == "top1":
        best = max(range(len(values)), key=values.__getitem__)
        label += f", best {values[best]:.2%} in epoch {epochs[best]}"
        axes.axhline(values[best], color=colour, linestyle=":", linewidth=1)
    # A dot for each epoch while there are few: a line through one point would be invisible.
    axes.plot(epochs, values, marker="o" if len(points) <= 30 else "", markersize=3, color=colour, label=label)
