"""How attention is arranged as the patches lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitfast.inference.attention_grid import attention_grid


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
def test_mistakes(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_grid(torch.ones(shape), **options)
