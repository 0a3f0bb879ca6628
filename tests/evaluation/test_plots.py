"""Figures of attention."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from vitfast.evaluation.plots import GAP, LABEL, PANEL, TITLE, attention_figure_size, draw_attention, overlay


def panel(picture: np.ndarray, column: int) -> np.ndarray:
    """The pixels of a panel of the first row."""
    left = GAP + column * (PANEL + GAP)
    return picture[TITLE + LABEL : TITLE + LABEL + PANEL, left : left + PANEL]


def test_each_cell_covers_its_patch(tmp_path):
    image = torch.zeros(3, 32, 32)
    image[0, 8:16, 16:24] = 1  # the patch of row 1 and column 2 of 4 x 4 is red
    grid = torch.zeros(4, 4)
    grid[1, 2] = 0.5
    draw_attention(image, [("rollout", grid)], tmp_path / "a.png", "class", "a.jpg")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert picture.shape == (*attention_figure_size(2)[::-1], 3)
    cell = PANEL // 4
    for pixels in (panel(picture, 0), panel(picture, 1)):
        brightness = pixels.sum(2).reshape(4, cell, 4, cell).mean((1, 3))
        assert np.unravel_index(brightness.argmax(), (4, 4)) == (1, 2)
    left = panel(picture, 0)
    assert (left[cell + 2 : 2 * cell - 2, 2 * cell + 2 : 3 * cell - 2] == (255, 0, 0)).all()
    assert (left[:cell] == 0).all()


def test_the_overlay_is_a_mixture_scaled_by_the_maximum():
    dark, light = np.zeros((8, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)
    grid = torch.rand(7, 7)
    assert np.array_equal(overlay(light, grid), overlay(light, 1000 * grid))
    difference = overlay(light, grid) - overlay(dark, grid)
    assert np.ptp(difference) < 1e-6  # the image's share is the same everywhere
    assert 0.3 < difference.mean() < 0.6
    assert np.isfinite(overlay(dark, torch.zeros(7, 7))).all()


@pytest.mark.parametrize(("panels", "columns", "rows"), [(2, 2, 1), (3, 3, 1), (4, 2, 2), (14, 4, 4), (26, 6, 5)])
def test_size(tmp_path, panels, columns, rows):
    width, height = attention_figure_size(panels)
    assert width == GAP + columns * (PANEL + GAP)
    assert height == TITLE + rows * (LABEL + PANEL + GAP)
    if panels <= 4:
        grids = [(str(index), torch.ones(2, 2)) for index in range(panels - 1)]
        draw_attention(torch.rand(1, 8, 8), grids, tmp_path / "a.png", "", "")
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (width, height)


@pytest.mark.parametrize("text", ["$x_{$", "a\nb", "x" * 500, "\udcff.jpg", "50 % \\alpha", ""])
def test_text_is_not_interpreted(tmp_path, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_attention(torch.zeros(3, 8, 8), [(text, torch.ones(2, 2))], tmp_path / "a.png", text, text)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("text", ["W" * 999, "i" * 999, "W" * 43])
def test_a_long_text_is_cut_in_the_middle(tmp_path, text):
    draw_attention(torch.zeros(3, 8, 8), [("a", torch.ones(2, 2))], tmp_path / "a.png", text, text)
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    title, label = picture[:TITLE], picture[TITLE : TITLE + LABEL, : GAP + PANEL + GAP]
    for strip in (title, label):
        ink = np.flatnonzero((strip < 128).any(0))
        assert GAP - 2 <= ink.min() <= GAP + 25  # the available width is used
        assert strip.shape[1] - GAP - 25 <= ink.max() <= strip.shape[1] - GAP + 2


def test_pyplot_and_its_global_state_stay_out(tmp_path):
    sys.modules.pop("matplotlib.pyplot", None)
    draw_attention(torch.zeros(1, 8, 8), [("a", torch.ones(2, 2))], tmp_path / "a.png", "t", "l")
    assert "matplotlib.pyplot" not in sys.modules
