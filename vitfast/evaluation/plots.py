"""Figures of attention, early exit, neighbours and quantization, written atomically as PNG files, without a display."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast.evaluation.exit_sweep import ExitSweep, OperatingPoint
from vitfast.figure import new_figure, save_figure
from vitfast.inference import ExitStatistics
from vitfast.quantization.report import QuantizationReport

# layout of draw_attention, in pixels
PANEL = 360
GAP = 12
TITLE = 34
LABEL = 24
_IMAGE_SHARE = 0.45

_EXAMPLE_INCHES = 0.75
_LABEL_INCHES = 1.3
_NEIGHBOUR_INCHES, _TEXT_INCHES = 1.0, 0.2
_MAX_DB = 160.0  # the precision of float32


def draw_attention(
    image_CHW: Tensor, grids: Sequence[tuple[str, Tensor]], path: str | os.PathLike[str], title: str, label: str
) -> None:
    """Draws an image and, for each grid, the image overlaid with the grid.

    Colours range from 0 (dark) to the grid's maximum (bright), which is part of its label, and are interpolated
    linearly between patch centres.

    Args:
        image_CHW: 1 or 3 channels, values in 0..1.
        grids: label and values ``[G, G]`` of each panel; values at least 0, row 0 at the top.
        path: the PNG file of ``attention_figure_size(1 + len(grids))`` pixels, replaced atomically.
        title: of the figure; shortened if too long.
        label: of the image; shortened if too long.
    """
    image_HWC = image_CHW.float().cpu().permute(1, 2, 0).expand(-1, -1, 3).numpy()
    panels = [(label, _resize_to_panel(image_HWC))]
    for name, grid_GG in grids:
        panels.append((f"{name}, brightest: {100 * float(grid_GG.max()):.3g} %", overlay(image_HWC, grid_GG)))
    width, height = attention_figure_size(len(panels))
    figure = new_figure(width / 100, height / 100, dpi=100)
    _write(figure, (width / 2, TITLE / 2), width - 2 * GAP, title, 13)
    for index, (text, pixels_HWC) in enumerate(panels):
        row, column = divmod(index, _columns(len(panels)))
        left = GAP + column * (PANEL + GAP)
        top = TITLE + row * (LABEL + PANEL + GAP)
        _write(figure, (left + PANEL / 2, top + LABEL / 2), PANEL, text, 9)
        bottom = height - top - LABEL - PANEL
        axes = figure.add_axes((left / width, bottom / height, PANEL / width, PANEL / height))
        axes.imshow(pixels_HWC, interpolation="nearest")
        axes.set_axis_off()
    save_figure(figure, path)


def attention_figure_size(panels: int) -> tuple[int, int]:
    """Returns width and height in pixels of a figure with the given number of panels, including the image."""
    columns = _columns(panels)
    rows = math.ceil(panels / columns)
    return GAP + columns * (PANEL + GAP), TITLE + rows * (LABEL + PANEL + GAP)


def overlay(image_HWC: np.ndarray, grid_GG: Tensor) -> np.ndarray:
    """Blends an image ``[H, W, 3]`` with the colours of a grid; returns ``[PANEL, PANEL, 3]``, all values in 0..1."""
    from matplotlib import colormaps

    grid_GG = grid_GG.float().cpu()
    scaled_GG = grid_GG / grid_GG.max().clamp(min=torch.finfo(torch.float32).tiny)
    heat_HW = F.interpolate(scaled_GG[None, None], (PANEL, PANEL), mode="bilinear", align_corners=False)[0, 0]
    colours_HWC = colormaps["inferno"](heat_HW.numpy())[..., :3]
    blended: np.ndarray = _IMAGE_SHARE * _resize_to_panel(image_HWC) + (1 - _IMAGE_SHARE) * colours_HWC
    return blended


def _columns(panels: int) -> int:
    return panels if panels <= 3 else math.ceil(math.sqrt(panels))


def _resize_to_panel(image_HWC: np.ndarray) -> np.ndarray:
    """Resizes an image to the size of a panel; pixels of small images stay visible as squares."""
    image_1CHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None]
    enlarged = 4 * image_HWC.shape[0] <= PANEL
    mode = "nearest-exact" if enlarged else "bilinear"
    resized_1CHW = F.interpolate(image_1CHW, (PANEL, PANEL), mode=mode, antialias=not enlarged)
    resized: np.ndarray = resized_1CHW[0].permute(1, 2, 0).clamp(0, 1).numpy()
    return resized


def _write(figure: Any, center: tuple[float, float], width: float, text: str, size: float) -> None:
    """Writes text centred at a point, in pixels; the middle of text that is too wide is replaced by an ellipsis."""
    text = text.encode("utf-8", "replace").decode()  # a file name may contain bytes that are not text
    x, y = center[0] / figure.bbox.width, 1 - center[1] / figure.bbox.height
    written = figure.text(x, y, text, ha="center", va="center", fontsize=size, parse_math=False)
    while (actual := written.get_window_extent().width) > width and len(text) > 3:
        kept = min(len(text) - 2, int(len(text) * width / actual))  # without the ellipsis
        text = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        written.set_text(text)


def draw_exit_curve(sweep: ExitSweep, path: str | os.PathLike[str], title: str) -> None:
    """Draws accuracy against images/s and against cost, and the shares of the exits, as a PNG file."""
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(15, 4.4, layout="constrained")
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(1, 3)
    _draw_accuracy(panels[0], sweep, "images/s", lambda point: point.speed.images_per_s.median)
    _draw_accuracy(panels[1], sweep, "GMACs an image", lambda point: point.test.cost)
    points = sorted((point.test for point in sweep.points), key=lambda point: point.cost)
    bands = list(zip(*(point.shares for point in points), strict=True))
    names = [f"leave at exit {number}" for number in range(1, len(bands) + 1)]
    panels[2].stackplot([point.cost for point in points], *bands, labels=names, alpha=0.8)
    panels[2].set(xlabel="GMACs an image", ylabel="share of the images", ylim=(0, 1))
    panels[2].legend(loc="lower right")
    panels[2].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    save_figure(figure, path)


def _draw_accuracy(axes: Any, sweep: ExitSweep, label: str, value: Callable[[OperatingPoint], float]) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.axhline(sweep.all_exits.test.accuracy, color="tab:gray", linestyle=":", linewidth=1)
    x, y = [value(point) for point in sweep.points], [point.test.accuracy for point in sweep.points]
    axes.plot(x, y, "o-", markersize=3, linewidth=1, label="early exit")
    for point, name, marker, colour, size in (
        (sweep.all_exits, "all exits", "*", "tab:green", 14),
        (sweep.chosen, "chosen", "D", "tab:red", 8),
    ):
        top1 = point.test.accuracy
        axes.plot([value(point)], [top1], marker, color=colour, markersize=size, label=f"{name} {top1:.2%}")
    axes.set(xlabel=label, ylabel="top-1 accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


@dataclass(frozen=True)
class ExitExample:
    """An image that leaves at the first or the last exit.

    Attributes:
        index: its column in the statistics.
        confidence: of the first exit, 0..1.
        correct: whether early exit predicts its label.
    """

    index: int
    confidence: float
    correct: bool


def easy_and_hard(
    statistics: ExitStatistics, thresholds: Sequence[float], labels: Tensor, class_index: int, count: int
) -> tuple[list[ExitExample], list[ExitExample]]:
    """Selects up to ``count`` easy and hard images of a class, given the ``labels`` ``[n]`` of all images.

    Returns:
        Images that leave at the first exit, the most confident first; images that reach the last exit, the least
        confident at the first exit first.
    """
    leaves = statistics.exit_index(thresholds)
    confidence = statistics.confidence[0]
    correct = statistics.correct.gather(0, leaves[None])[0]

    def select(mask: Tensor, *, descending: bool) -> list[ExitExample]:
        places = mask.nonzero().flatten()
        order = confidence[places].argsort(descending=descending, stable=True)[:count]
        return [ExitExample(i, float(confidence[i]), bool(correct[i])) for i in places[order].tolist()]

    of_class = labels == class_index
    easy = select(of_class & (leaves == 0), descending=True)
    return easy, select(of_class & (leaves == statistics.num_exits - 1), descending=False)


def draw_exit_examples(
    rows: Sequence[tuple[str, Sequence[tuple[Tensor, ExitExample]], Sequence[tuple[Tensor, ExitExample]]]],
    count: int,
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draws a row for each class: easy images on the left, hard ones on the right.

    Below each image is the first exit's top probability, red if the prediction is wrong.

    Args:
        rows: a class name, its easy and its hard images ``[C, H, W]`` with values in 0..1.
        count: columns of each kind.
        path: the PNG file.
        title: of the figure.
    """
    width, height = _LABEL_INCHES + (2 * count + 0.5) * _EXAMPLE_INCHES, 0.8 + len(rows) * (_EXAMPLE_INCHES + 0.2)
    figure = new_figure(width, height)
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=10, parse_math=False)
    left = [_LABEL_INCHES + side * (count + 0.4) * _EXAMPLE_INCHES for side in (0, 1)]
    for inches, text in zip(left, ("leave at the first exit", "need the last exit"), strict=True):
        figure.text((inches + count * _EXAMPLE_INCHES / 2) / width, 1 - 0.5 / height, text, ha="center", fontsize=9)
    side = 0.94 * _EXAMPLE_INCHES
    for number, (name, *kinds) in enumerate(rows):
        bottom = height - 0.6 - (number + 1) * (_EXAMPLE_INCHES + 0.2) + 0.2
        middle = (bottom + _EXAMPLE_INCHES / 2) / height
        figure.text(0.1 / width, middle, name, ha="left", va="center", fontsize=9, parse_math=False)
        for inches, examples in zip(left, kinds, strict=True):
            for column, (image_CHW, example) in enumerate(examples):
                x = inches + column * _EXAMPLE_INCHES
                axes = figure.add_axes((x / width, bottom / height, side / width, side / height))
                axes.imshow(image_CHW.float().cpu().permute(1, 2, 0).expand(-1, -1, 3).clamp(0, 1).numpy())
                axes.set_axis_off()
                colour = "black" if example.correct else "tab:red"
                where = ((x + side / 2) / width, (bottom - 0.09) / height)
                figure.text(*where, f"{example.confidence:.0%}", ha="center", va="center", fontsize=7, color=colour)
    save_figure(figure, path)


def draw_neighbours(
    rows: Sequence[tuple[tuple[Tensor, str], Sequence[tuple[Tensor, str, float]]]],
    path: str | os.PathLike[str],
    title: str,
    *,
    classes: bool = True,
) -> None:
    """Draws a row for each image: the image, then its nearest neighbours.

    Below each neighbour are its class, red if it is not the image's, and the cosine similarity.

    Args:
        rows: an image ``[C, H, W]`` with values in 0..1 and its class; its neighbours with class and similarity.
        path: the PNG file.
        title: of the figure.
        classes: whether the texts are classes, rather than names.
    """
    columns = 1 + max(len(neighbours) for _, neighbours in rows)
    width, height = columns * _NEIGHBOUR_INCHES, len(rows) * (_NEIGHBOUR_INCHES + _TEXT_INCHES) + 0.4
    figure = new_figure(width, height)
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=10, parse_math=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, ((image_CHW, name), neighbours) in enumerate(rows, start=1):
        bottom = height - 0.4 - number * (_NEIGHBOUR_INCHES + _TEXT_INCHES) + _TEXT_INCHES
        drawn = [(image_CHW, name, f"{name}:")]
        drawn += [(other_CHW, other, f"{other} {value:.2f}") for other_CHW, other, value in neighbours]
        for column, (pixels_CHW, label, text) in enumerate(drawn):
            left, side = (column + 0.03) * _NEIGHBOUR_INCHES, 0.94 * _NEIGHBOUR_INCHES
            pixels_HWC = pixels_CHW.float().cpu().permute(1, 2, 0).expand(-1, -1, 3).clamp(0, 1).numpy()
            axes.imshow(pixels_HWC, extent=(left, left + side, bottom, bottom + side), aspect="auto")
            where = (left + side / 2, bottom - _TEXT_INCHES / 2)
            colour = "black" if label == name or not classes else "tab:red"
            axes.text(*where, text, ha="center", va="center", fontsize=7, color=colour, parse_math=False)
    axes.set(xlim=(0, width), ylim=(0, height))  # imshow has changed them
    save_figure(figure, path)


def draw_quantization(report: QuantizationReport, path: str | os.PathLike[str], title: str) -> None:
    """Draws the signal-to-noise ratio and the shares of saturated and flushed values of every layer as a PNG file."""
    from matplotlib.ticker import PercentFormatter

    layers = [*report.layers, report.output]
    names = [*(layer.name or "(model)" for layer in report.layers), "logits"]
    figure = new_figure(11, 1.6 + 0.2 * len(layers), dpi=110, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(layers))
    ratios = np.array([layer.signal_to_noise_db for layer in layers])
    left.barh(rows, np.nan_to_num(ratios, nan=0.0, posinf=_MAX_DB).clip(0.0, _MAX_DB), color="tab:blue")
    for row, layer in enumerate(layers):
        if not math.isfinite(layer.signal_to_noise_db):
            left.text(0.5, row, "exact" if layer.signal_to_noise_db > 0 else "not finite", va="center", fontsize=7)
    left.set_yticks(rows, names, fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("signal to noise, dB")
    shares = (
        ("activations, saturated", "tab:red", [layer.activations.saturated_share for layer in layers]),
        ("activations, flushed to 0", "tab:orange", [layer.activations.flushed_share for layer in layers]),
        ("weights, saturated", "tab:purple", [layer.weights.saturated_share for layer in layers]),
        ("weights, flushed to 0", "tab:green", [layer.weights.flushed_share for layer in layers]),
    )
    for index, (label, colour, values) in enumerate(shares):
        right.barh([row + 0.2 * (index - 1.5) for row in rows], values, height=0.2, color=colour, label=label)
    right.set_xlim(left=0)
    right.set_xlabel("share of the values")
    right.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)
