"""Attention rollout against its recipe in numpy, and the layout on the patch grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vitfast
from vitfast.inference.attention_maps import attention_maps
from vitfast.inference.attention_rollout import attention_grid, attention_rollout


def random_maps(tokens: list[int], heads: int = 3, batch: int = 2) -> list[Tensor]:
    return [(3 * torch.randn(batch, heads, size, size, dtype=torch.float64)).softmax(-1) for size in tokens]


def plain_rollout(layers: list[np.ndarray]) -> np.ndarray:
    """Rollout of one image, layers [H, N, N]: head mean plus identity, rows normalized, multiplied from the left.

    This is the recipe of the visualization in jeonsworld's ViT-pytorch.
    """
    joint = np.eye(layers[0].shape[-1])
    for layer in layers:
        mean = np.mean(layer, axis=0)
        mean = mean + np.eye(len(mean))
        mean = mean / mean.sum(axis=1)[:, None]
        joint = np.matmul(mean, joint)
    return joint


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_recipe(depth: int) -> None:
    maps = random_maps([10] * depth)
    rollout = attention_rollout(maps)
    for image in range(2):
        expected = plain_rollout([layer[image].numpy() for layer in maps])
        np.testing.assert_allclose(rollout[image].numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, 10, dtype=torch.float64))


def test_joining_tokens_are_separate_before_their_layer() -> None:
    """Equals joining from the start, in layers where these tokens attend to themselves only and none to them."""
    maps = random_maps([9, 9, 10, 12, 12])
    padded = []
    for layer in maps:
        joining = 12 - layer.shape[-1]
        whole = torch.eye(12, dtype=torch.float64).repeat(2, 3, 1, 1)
        whole[:, :, joining:, joining:] = layer
        padded.append(whole)
    rollout = attention_rollout(maps)
    torch.testing.assert_close(rollout, attention_rollout(padded))
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, 12, dtype=torch.float64))


def test_of_a_convit() -> None:
    model = vitfast.create_model("convit_tiny", depth=3, local_up_to_layer=2, img_size=32, num_classes=5)
    first, second, last = attention_maps(model, torch.randn(1, 3, 32, 32))
    patches = plain_rollout([first[0].numpy(), second[0].numpy()])
    with_class_token = np.zeros((5, 5))
    with_class_token[0, 0] = 1
    with_class_token[1:, 1:] = patches
    expected = plain_rollout([last[0].numpy()]) @ with_class_token
    rollout = attention_rollout([first, second, last])
    assert rollout.dtype == torch.float32
    np.testing.assert_allclose(rollout[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_heads_may_be_averaged_before() -> None:
    maps = random_maps([5, 5])
    averaged = [layer.mean(1, keepdim=True) for layer in maps]
    torch.testing.assert_close(attention_rollout(averaged), attention_rollout(maps))


def test_half_precision_is_summed_in_float32() -> None:
    maps = random_maps([197] * 4, heads=2, batch=1)
    rollout = attention_rollout([layer.bfloat16() for layer in maps])
    assert rollout.dtype == torch.float32
    assert (rollout.double() - attention_rollout(maps)).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "at least one layer, got none"),
        ([(2, 5, 5)], r"maps\[0\] must have shape \[B, H, N, N\], got \[2, 5, 5\]"),
        ([(1, 2, 5, 5), (1, 2, 5, 6)], r"maps\[1\] must have shape"),
        ([(1, 2, 5, 5), (1, 2, 4, 4)], r"maps\[1\] has shape \[1, 2, 4, 4\], .* no token may get lost"),
        ([(1, 2, 5, 5), (3, 2, 5, 5)], r"maps\[1\] has shape \[3, 2, 5, 5\], .* of the same images"),
    ],
)
def test_maps_that_do_not_fit(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_rollout([torch.ones(shape) for shape in shapes])


@pytest.mark.parametrize("grid", [1, 2, 3, 14])
@pytest.mark.parametrize("prefix", [1, 2])
def test_the_class_tokens_row_without_the_prefix(grid: int, prefix: int) -> None:
    attention = torch.rand(2, prefix + grid**2, prefix + grid**2)
    result = attention_grid(attention)
    assert result.shape == (2, grid, grid)
    for y in range(grid):
        for x in range(grid):
            assert torch.equal(result[:, y, x], attention[:, 0, prefix + y * grid + x])


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_mean_of_all_tokens(prefix: int) -> None:
    attention = torch.rand(2, prefix + 9, prefix + 9)
    expected = attention.mean(1)[:, prefix:].view(2, 3, 3)
    assert torch.equal(attention_grid(attention, reader="mean"), expected)
    if not prefix:  # there is no class token to read
        assert torch.equal(attention_grid(attention), expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 5, 5), {}, r"must have shape \[B, N, N\], N at least 1, got \[2, 3, 5, 5\]"),
        ((2, 5, 6), {}, r"got \[2, 5, 6\]"),
        ((2, 0, 0), {}, r"got \[2, 0, 0\]"),
        ((2, 5, 5), {"reader": "max"}, "reader must be 'token' or 'mean', got 'max'"),
    ],
)
def test_a_grid_of_invalid_attention(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_grid(torch.ones(shape), **options)
