"""Relative position bias and windows of accelerated models, against timm's, and without vitfast's operators."""

from __future__ import annotations

import pytest
import torch
from timm.layers import RelPosBias
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from torch import Tensor

import vitfast
from support.accelerable import accelerable, sample_images
from vitfast.inference.cpu import cpu_backend
from vitfast.inference.ir import WindowSpec
from vitfast.inference.modules.attention import BiasedAttention
from vitfast.inference.modules.block import InferenceBlock
from vitfast.inference.modules.position_bias import PositionBias, relative_bias, split_windows

CPU = torch.device("cpu")


@pytest.mark.parametrize("prefix_tokens", [0, 1])
@pytest.mark.parametrize("size", [(3, 3), (2, 5)])
def test_a_table_gives_timms_bias(size: tuple[int, int], prefix_tokens: int) -> None:
    torch.manual_seed(0)
    module = RelPosBias(size, num_heads=2, prefix_tokens=prefix_tokens)
    table = module.relative_position_bias_table.detach()
    bias = relative_bias(table, size, size, has_class_token=prefix_tokens > 0)
    assert torch.equal(bias[None], module.get_bias())


@pytest.mark.parametrize(("grid", "shift"), [((6, 9), (1, 1)), ((3, 3), (0, 0)), ((7, 5), (1, 1)), ((3, 8), (0, 1))])
def test_windows_and_masks_are_timms(grid: tuple[int, int], shift: tuple[int, int]) -> None:
    indices = split_windows(WindowSpec((3, 3), shift), shift, grid, CPU).flatten(0, 1)
    rows, columns = (-side % 3 for side in grid)
    numbers = torch.arange(1, 1 + grid[0] * grid[1]).view(grid).roll((-shift[0], -shift[1]), (0, 1))
    padded = torch.nn.functional.pad(numbers, (0, columns, 0, rows))
    assert torch.equal(indices, window_partition(padded[None, ..., None], (3, 3)).view(-1, 9) - 1)
    block = SwinTransformerBlock(8, grid, num_heads=2, window_size=3, shift_size=1)
    assert tuple(block.shift_size) == shift
    tables = PositionBias(None, WindowSpec((3, 3), shift), 2, grid, CPU)(grid)
    if tables.bias is None:
        assert block.attn_mask is None or not block.attn_mask.any()
        return
    mask: Tensor = block.attn_mask
    assert torch.equal(tables.bias[tables.patterns], mask[:, None].expand(-1, 2, -1, -1))
    assert len(tables.bias) == 4, "windows with the same mask share it"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kind", ["timm: BEiT", "timm: Swin", "timm: Swin V2", "timm: SAM", "transformers: SwinModel"])
@torch.no_grad()
def test_without_the_operators_it_is_the_same(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = accelerable(kind)
    images = sample_images(model)
    expected = vitfast.accelerate(model, precision)(images)
    monkeypatch.delitem(cpu_backend._PACKED, BiasedAttention)
    monkeypatch.delitem(cpu_backend._PACKED, InferenceBlock)
    plain = vitfast.accelerate(model, precision)
    assert "separate attention" in str(plain.report())
    result = plain(images)
    if not isinstance(expected, Tensor):
        expected, result = expected[0], result[0]
    assert (result - expected).norm() <= {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}[precision] * expected.norm()
