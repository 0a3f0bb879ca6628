"""An image beside where a model looks in it, as a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast.figure import new_figure, save_figure

# in pixels
PANEL = 360
GAP = 12
TITLE = 34
LABEL = 24

_COLOURS = "inferno"
_SHARE_OF_IMAGE = 0.45


def draw_attention(
    image_CHW: Tensor, grids: Sequence[tuple[str, Tensor]], path: str | os.PathLike[str], title: str, label: str
) -> None:
    """Draws an image and, for each grid, the image with the grid laid over it, and writes the picture as a whole.

    The colours go from 0 (dark) to the grid's maximum (bright), which its label names. Between the centres of patches
    they are interpolated linearly. Nothing needs a display.

    Args:
        image_CHW: 1 or 3 channels, values in 0..1.
        grids: for each panel its label and its values ``[G, G]``, at least 0, row 0 at the top.
        path: the PNG file, ``picture_size(1 + len(grids))`` pixels large.
        title: stands above; shortened if it is long.
        label: stands above the image; shortened if it is long.
    """
    image_HWC = image_CHW.float().cpu().permute(1, 2, 0).expand(-1, -1, 3).numpy()
    width, height = picture_size(1 + len(grids))
    figure = new_figure(width / 100, height / 100, dpi=100)
    _write(figure, (width / 2, TITLE / 2), width - 2 * GAP, title, 13)
    panels = [(label, _enlarge(image_HWC))]
    for name, grid_GG in grids:
        panels.append((f"{name}, brightest: {_percent(float(grid_GG.max()))}", overlay(image_HWC, grid_GG)))
    columns = _columns(len(panels))
    for index, (text, pixels_HWC) in enumerate(panels):
        row, column = divmod(index, columns)
        left = GAP + column * (PANEL + GAP)
        top = TITLE + row * (LABEL + PANEL + GAP)
        _write(figure, (left + PANEL / 2, top + LABEL / 2), PANEL, text, 9)
        bottom = height - top - LABEL - PANEL
        axes = figure.add_axes((left / width, bottom / height, PANEL / width, PANEL / height))
        axes.imshow(pixels_HWC, interpolation="nearest")
        axes.set_axis_off()
    save_figure(figure, path)


def picture_size(panels: int) -> tuple[int, int]:
    """Width and height in pixels of a picture of so many panels, the image among them."""
    columns = _columns(panels)
    rows = math.ceil(panels / columns)
    return GAP + columns * (PANEL + GAP), TITLE + rows * (LABEL + PANEL + GAP)


def overlay(image_HWC: np.ndarray, grid_GG: Tensor) -> np.ndarray:
    """Mixes an image ``[H, W, 3]`` with the colours of a grid; returns ``[PANEL, PANEL, 3]``, all values in 0..1."""
    from matplotlib import colormaps

    grid_GG = grid_GG.float().cpu()
    scaled_GG = grid_GG / grid_GG.max().clamp(min=torch.finfo(torch.float32).tiny)
    heat_HW = F.interpolate(scaled_GG[None, None], (PANEL, PANEL), mode="bilinear", align_corners=False)[0, 0]
    colours_HWC = colormaps[_COLOURS](heat_HW.numpy())[..., :3]
    mixed: np.ndarray = _SHARE_OF_IMAGE * _enlarge(image_HWC) + (1 - _SHARE_OF_IMAGE) * colours_HWC
    return mixed


def _columns(panels: int) -> int:
    return panels if panels <= 3 else math.ceil(math.sqrt(panels))


def _enlarge(image_HWC: np.ndarray) -> np.ndarray:
    """Brings an image to the size of a panel: small ones by whole pixels, as the model sees them."""
    image_1CHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None]
    if 4 * image_HWC.shape[0] <= PANEL:
        resized_1CHW = F.interpolate(image_1CHW, (PANEL, PANEL), mode="nearest-exact")
    else:
        resized_1CHW = F.interpolate(image_1CHW, (PANEL, PANEL), mode="bilinear", antialias=True)
    enlarged: np.ndarray = resized_1CHW[0].permute(1, 2, 0).clamp(0, 1).numpy()
    return enlarged


def _write(figure: Any, center: tuple[float, float], width: float, text: str, size: float) -> None:
    """Writes text around a point of the figure, all in pixels; one that is too wide loses its middle."""
    text = text.encode("utf-8", "replace").decode()  # a file's name may hold bytes that are no text
    x, y = center[0] / figure.bbox.width, 1 - center[1] / figure.bbox.height
    written = figure.text(x, y, text, ha="center", va="center", fontsize=size, parse_math=False)
    while (actual := written.get_window_extent().width) > width and len(text) > 3:
        kept = min(len(text) - 2, int(len(text) * width / actual))  # without the sign of what is left out
        text = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        written.set_text(text)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
