"""The error of every layer of a quantized model as a picture."""

from __future__ import annotations

import math
import os
from typing import Any

from vitfast.figure import new_figure, save_figure
from vitfast.quantization.report import LayerError, QuantizationReport

_MOST_DB = 160.0  # beyond that float32 itself ends


def draw_quantization(report: QuantizationReport, path: str | os.PathLike[str], title: str) -> None:
    """Draws, layer by layer, the signal-to-noise ratio and the shares of values that are too large or too small.

    Args:
        report: of the model.
        path: the PNG file.
        title: stands above.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.ticker import PercentFormatter

    layers = [*report.layers, report.output]
    names = [*(layer.name or "(model)" for layer in report.layers), "logits"]
    figure = new_figure(11, 1.6 + 0.2 * len(layers), dpi=110, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(layers))
    left.barh(rows, [_bar(layer) for layer in layers], color="tab:blue")
    for row, layer in enumerate(layers):
        if not math.isfinite(layer.signal_to_noise_db):
            left.text(0.5, row, "exact" if layer.signal_to_noise_db > 0 else "not finite", va="center", fontsize=7)
    left.set_yticks(rows, names, fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("signal to noise, dB")
    _draw_shares(right, layers)
    right.set_xlabel("share of the values")
    right.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def _draw_shares(axes: Any, layers: list[LayerError]) -> None:
    shares = (
        ("activations, saturated", "tab:red", [layer.activations.saturated_share for layer in layers]),
        ("activations, flushed to 0", "tab:orange", [layer.activations.flushed_share for layer in layers]),
        ("weights, saturated", "tab:purple", [layer.weights.saturated_share for layer in layers]),
        ("weights, flushed to 0", "tab:green", [layer.weights.flushed_share for layer in layers]),
    )
    for index, (label, colour, values) in enumerate(shares):
        rows = [row + 0.2 * (index - 1.5) for row in range(len(layers))]
        axes.barh(rows, values, height=0.2, color=colour, label=label)
    axes.set_xlim(left=0)


def _bar(layer: LayerError) -> float:
    ratio = layer.signal_to_noise_db
    return 0.0 if math.isnan(ratio) else min(max(ratio, 0.0), _MOST_DB)
