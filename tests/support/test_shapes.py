"""Layouts differ from the contiguous one and keep the values unless they declare otherwise."""

from __future__ import annotations

import random

import pytest
import torch

from support.shapes import ALL_LAYOUTS, EXPANDED_LAYOUTS, draw_attention_sizes, draw_leading_shape, in_layout


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_layout_differs_in_memory_and_not_in_values(layout: str) -> None:
    tensor = torch.randn(3, 4, 5, 6)
    laid_out = in_layout(tensor, layout)
    assert laid_out.shape == tensor.shape
    assert laid_out.stride() != tensor.stride() or laid_out.storage_offset() % 4 != 0
    assert torch.equal(laid_out, tensor) == (layout not in EXPANDED_LAYOUTS)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7,), (1, 1), (2, 0, 3)])
def test_layout_takes_small_and_empty_shapes(layout: str, shape: tuple[int, ...]) -> None:
    assert in_layout(torch.ones(shape), layout).shape == shape


def test_drawn_sizes_cover_the_edges_and_keep_to_the_budget() -> None:
    draw = random.Random(0)
    sizes = [draw_attention_sizes(draw, 10**6) for _ in range(2000)]
    assert {0, 1, 17, 197, 577, 1025} <= {tokens for _, _, tokens, _ in sizes}
    assert {0, 9} <= {batch for batch, *_ in sizes}
    assert all(b * h * n * n * d <= 10**6 or (b <= 1 and h == 1 and d <= 8) for b, h, n, d in sizes)
    shapes = [draw_leading_shape(draw, 400) for _ in range(2000)]
    assert all(torch.Size(shape).numel() <= 400 for shape in shapes)
    assert {len(shape) for shape in shapes} == {0, 1, 2, 3}
