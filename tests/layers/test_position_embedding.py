"""The three interpolations against independent definitions of them."""

import math

import numpy as np
import pytest
import torch

from vitfast.layers import resize_position_embedding, sinusoidal_positions

SIZES = [(7, 12), (14, 24), (24, 14), (4, 1), (1, 3), (5, 5)]


def _cubic(t: float) -> float:
    """Keys' convolution kernel with a = -0.75, which torch and so DeiT use."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def _cubic_matrix(old: int, new: int, aligned: bool) -> np.ndarray:
    """[new, old]: one axis of a bicubic interpolation, with the border repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        source = (i * (old - 1) / (new - 1) if new > 1 else 0.0) if aligned else (i + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            matrix[i, min(max(tap, 0), old - 1)] += _cubic(source - tap)
    return matrix


def _positions(grid: int, prefix: int) -> torch.Tensor:
    return torch.randn(1, prefix + grid * grid, 6, dtype=torch.float64)


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic_aligned"])
def test_bicubic(interpolation: str, old: int, new: int) -> None:
    positions = _positions(old, 2)
    resized = resize_position_embedding(positions, new, num_prefix_tokens=2, interpolation=interpolation)
    matrix = torch.from_numpy(_cubic_matrix(old, new, interpolation == "bicubic_aligned"))
    grid = positions[0, 2:].view(old, old, 6)
    expected = torch.einsum("ay,bx,yxc->abc", matrix, matrix, grid).reshape(1, new * new, 6)
    torch.testing.assert_close(resized[:, 2:], expected)
    assert torch.equal(resized[:, :2], positions[:, :2])


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_zoom_linear_is_scipys(old: int, new: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    positions = _positions(old, 1)
    resized = resize_position_embedding(positions, new, interpolation="zoom_linear")
    expected = ndimage.zoom(positions[0, 1:].view(old, old, 6).numpy(), (new / old, new / old, 1), order=1)
    torch.testing.assert_close(resized[0, 1:], torch.from_numpy(expected).reshape(new * new, 6))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bicubic_antialias_is_timms(old: int, new: int) -> None:
    layers = pytest.importorskip("timm.layers")
    positions = _positions(old, 2).float()
    resized = resize_position_embedding(positions, new, num_prefix_tokens=2, interpolation="bicubic_antialias")
    expected = layers.resample_abs_pos_embed(positions, (new, new), num_prefix_tokens=2)
    torch.testing.assert_close(resized, expected)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bicubic_aligned_is_torchvisions(old: int, new: int) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    positions = _positions(old, 1)
    resized = resize_position_embedding(positions, new, interpolation="bicubic_aligned")
    state = interpolate_embeddings(new * 16, 16, {"encoder.pos_embedding": positions})
    torch.testing.assert_close(resized, state["encoder.pos_embedding"])


def test_no_two_interpolations_are_the_same() -> None:
    for old, new in ((7, 12), (14, 9)):
        ways = ("zoom_linear", "bicubic", "bicubic_aligned", "bicubic_antialias")
        positions = _positions(old, 1)
        resized = [resize_position_embedding(positions, new, interpolation=way) for way in ways]
        for i, first in enumerate(resized):
            assert all((first - second).abs().max() > 1e-3 for second in resized[:i])


def test_keeps_the_type() -> None:
    positions = _positions(3, 1).to(torch.bfloat16)
    assert resize_position_embedding(positions, 4).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": 4, "num_prefix_tokens": 2}, "square grid"),
        ({"grid_size": 0}, "grid_size must be at least 1, got 0"),
        ({"grid_size": 4, "interpolation": "nearest"}, "bicubic_aligned, bicubic_antialias, got 'nearest'"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_position_embedding(_positions(3, 1), **options)


def test_every_entry_of_the_sinusoids() -> None:
    table = sinusoidal_positions(5, 6)
    assert table.shape == (1, 5, 6)
    for position in range(5):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[0, position, channel].item() == pytest.approx(expected, abs=1e-7)
