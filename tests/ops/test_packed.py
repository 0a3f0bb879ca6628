"""GEMMs with packed weights, attention and whole blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vitfast
from support import packed_plain as plain
from support.packed_cases import (
    OPS,
    PRECISIONS,
    block_arguments,
    block_parameters,
    check_attention,
    check_block,
    check_large_logits,
    check_linear,
    check_masked,
    check_mlp_without_norm,
    check_patch_embed,
    check_related_attention,
    check_ties_of_int8,
    draw,
    draw_rotary,
    draw_windows,
    on_threads,
    packed_block,
    packed_blocks,
    packed_linear,
    position_options,
)
from vitfast.inference.cpu.packed_layers import position_arguments
from vitfast.inference.modules.position_bias import BiasTables
from vitfast.layers import GridUpsample
from vitfast.ops.library import has_kernel
from vitfast.ops.packed import BlockParameters
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

if not has_kernel("packed", "cpu"):
    pytest.skip("pure PyTorch: there are no packed operators", allow_module_level=True)

SIZES = (48, 3, 16, 96)  # channels, heads, head_dim, hidden


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 197, 500])
def test_linear_with_every_tail_of_rows(rows: int, precision: str) -> None:
    check_linear(rows, 64, 96, precision, "none", with_all=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("inputs", [1, 3, 63, 65, 770, 1024, 1025, 2050, 3072])
def test_linear_with_every_tail_of_inputs(inputs: int, precision: str) -> None:
    check_linear(11, inputs, 65, precision, "none", with_all=False)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_linear_without_inputs_is_its_bias(precision: str) -> None:
    packed, bias = OPS.pack_weight(torch.zeros(65, 0), precision), draw(65)
    out = OPS.packed_linear(torch.zeros(40, 0), None, None, None, packed, bias, 65, precision, "none")
    assert torch.equal(out, bias.expand(40, 65))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("outputs", [1, 15, 17, 63, 128, 1000])
def test_linear_with_every_tail_of_outputs(outputs: int, precision: str) -> None:
    check_linear(8, 40, outputs, precision, "none", with_all=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", [name for name in plain.ACTIVATIONS if name != "none"])
def test_activations(activation: str, precision: str) -> None:
    check_linear(33, 50, 70, precision, activation, with_all=True)
    check_linear(12, 1500, 70, precision, activation, with_all=True)


def test_gelu_of_bf16_is_within_half_a_unit_of_bfloat16() -> None:
    x = torch.cat([torch.linspace(-5.5, 12, 20001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 300.0])])
    x = x.bfloat16().float()[:, None]  # one input times one: the product is exact
    out = packed_linear(x, torch.ones(1, 1), None, "bf16", "gelu")
    exact = torch.nn.functional.gelu(x.double())
    assert ((out - exact).abs() <= exact.abs() * 2**-9).all()
    far = packed_linear(torch.tensor([[-8.0], [-300.0]]), torch.ones(1, 1), None, "bf16", "gelu")
    assert (far.abs() < 1e-6).all()


def test_gelu_of_int8_is_a_fraction_of_a_step() -> None:
    x = torch.cat([torch.linspace(-9, 9, 36001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 300.0, -300.0])])
    exact, weight = torch.nn.functional.gelu(x.double()), torch.ones(1, 1)
    out = packed_linear(x[:, None], weight, None, "int8", "gelu")[:, 0]  # x is 127 steps, times one
    error = (out - exact).abs()
    assert (error <= 1.4e-4 + 3e-7 * exact.abs()).all()
    assert (error <= 1e-3 * exact.abs())[x.abs() < 2].all()  # also rows of small numbers keep 8 bits
    assert packed_linear(torch.tensor([[torch.nan]]), weight, None, "int8", "gelu").isnan().all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_unpacking_gives_the_weight_as_it_is_kept(precision: str) -> None:
    weight = draw(70, 1030)
    weight[3] = 0
    unpacked = OPS.unpack_weight(OPS.pack_weight(weight, precision), 70, 1030, precision)
    torch.testing.assert_close(unpacked, plain.kept_weight(weight, precision), rtol=0, atol=0)


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("bf16", 2), ("fp16_32", 2), ("int8", 1)])
def test_packing_costs_little_memory(precision: str, bytes_each: int) -> None:
    for n, k in ((2304, 768), (768, 3072), (192, 192), (1000, 384)):
        assert OPS.pack_weight(torch.zeros(n, k), precision).numel() <= 1.05 * n * k * bytes_each


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_x_may_be_bfloat16_or_a_slice_of_tokens(precision: str) -> None:
    weight, x = draw(70, 48), draw(4, 9, 48).bfloat16()
    expected = packed_linear(x.float().reshape(-1, 48), weight, None, precision).view(4, 9, 70)
    assert torch.equal(packed_linear(x, weight, None, precision), expected)
    assert torch.equal(packed_linear(x.float()[:, 0], weight, None, precision), expected[:, 0])
    assert torch.equal(packed_linear(x.float()[:, 2:5], weight, None, precision), expected[:, 2:5])
    assert torch.equal(packed_linear(x.float()[:, :1], weight, None, precision), expected[:, :1])


def test_int8_rounds_each_number_once() -> None:
    check_ties_of_int8()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_norm_linear_equals_norm_then_linear(precision: str) -> None:
    x, weight, bias = draw(21, 100) * 3 + 1, draw(70, 100, scale=0.1), draw(70)
    gamma, beta = 1 + draw(100, seed=1, scale=0.1), draw(100, seed=2)
    packed = OPS.pack_weight(weight, precision)
    for g, b in ((gamma, beta), (None, None)):
        actual = OPS.packed_linear(x, g, b, 1e-6, packed, bias, 70, precision, "none")
        normed = plain.norm(x, g, b, 1e-6, precision)
        # a number next to a boundary may be rounded the other way, and sums of float32 depend on their order
        step = {"fp32": 2**-18, "bf16": 2**-7, "fp16_32": 2**-10, "int8": 0.05}[precision]
        torch.testing.assert_close(actual, plain.linear(normed, weight, bias, precision), rtol=0, atol=step)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim"), [(1, 1, 64), (2, 3, 16), (50, 2, 64), (197, 2, 64), (65, 2, 7)]
)
def test_attention(tokens: int, heads: int, head_dim: int, precision: str) -> None:
    check_attention(2, tokens, heads, head_dim, precision)


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_of_bfloat16_is_rounded_once_more(precision: str, head_dim: int) -> None:
    qkv = draw(2, 41, 3, 2, head_dim).bfloat16()
    out = OPS.packed_attention(qkv, 0.25, precision)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, OPS.packed_attention(qkv.float(), 0.25, "bf16").bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spread", [8.0, 300.0, -300.0])
def test_attention_whose_logits_are_far_apart(spread: float, precision: str) -> None:
    qkv, offset = draw(1, 33, 3, 2, 16), torch.zeros(1, 33, 3, 2, 16)
    offset[:, :, 0, :, 0], offset[:, :, 1, :, 0] = abs(spread), spread  # at -300 all logits are far below zero
    qkv = qkv + offset
    if precision == "bf16":
        qkv = qkv.bfloat16().float()  # only processors that multiply bfloat16 would round it
    exact = plain.attention(qkv.double(), 0.25, "exact")
    actual, expected = OPS.packed_attention(qkv, 0.25, precision), plain.attention(qkv, 0.25, precision)
    assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=f"{precision} attention, spread {spread}")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("exponent", [20, 31, 40, 104, 126])
def test_attention_whose_logits_are_very_large(exponent: int, precision: str) -> None:
    check_large_logits(exponent, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_keeps_a_nan_with_its_query_or_its_head(precision: str) -> None:
    qkv = draw(2, 21, 3, 2, 16)
    expected = OPS.packed_attention(qkv, 0.25, precision)
    qkv[1, 4, 0, 0, 3] = torch.nan  # a query of the first head
    qkv[0, 7, 1, 1, 3] = torch.nan  # a key of the second head
    out = OPS.packed_attention(qkv, 0.25, precision)
    assert out[1, 4, 0].isnan().all()
    assert out[0, :, 1].isnan().all()
    expected[1, 4, 0] = expected[0, :, 1] = torch.nan
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("tokens", [577, 1025])
def test_attention_over_long_rows(tokens: int, precision: str) -> None:
    check_attention(1, tokens, 1, 64, precision)


@pytest.mark.parametrize(
    ("head_dim", "precision"), [(32, "bf16"), (64, "bf16"), (96, "bf16"), (128, "bf16"), (64, "int8")]
)
def test_attention_with_every_tail_of_tokens(head_dim: int, precision: str) -> None:
    for tokens in (*range(1, 67), 197):
        check_attention(1, tokens, 2, head_dim, precision)


@pytest.mark.parametrize("tokens", [33, 2050])
@pytest.mark.parametrize("head_dim", [2, 64, 256])
def test_attention_of_numbers_that_are_all_the_largest(tokens: int, head_dim: int) -> None:
    """Sums of products of int16 are as large as they can be."""
    qkv = torch.ones(1, tokens, 3, 1, head_dim)
    qkv[:, ::2, 1:] = -1  # keys and values of every second token
    out = OPS.packed_attention(qkv, 0.25, "int8")
    exact = plain.attention(qkv.double(), 0.25, "exact").float()
    torch.testing.assert_close(out, exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("spread", [30.0, 300.0, -300.0])
@pytest.mark.parametrize("tokens", [5, 32, 33, 70])
def test_attention_whose_largest_logit_is_anywhere(tokens: int, spread: float) -> None:
    """A key has a large logit for some queries: the maximum is not among the first 32 tokens."""
    for key in {0, tokens // 2, tokens - 1}:
        qkv = draw(1, tokens, 3, 2, 32)
        qkv[:, ::3, 0, :, 0] += abs(spread)
        qkv[:, key, 1, :, 0] += spread
        qkv = qkv.bfloat16().float()  # only processors that multiply bfloat16 would round it
        exact = plain.attention(qkv.double(), 0.25, "exact")
        actual, expected = OPS.packed_attention(qkv, 0.25, "bf16"), plain.attention(qkv, 0.25, "bf16")
        assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=f"key {key} of {tokens}, {spread}")


@pytest.mark.parametrize(("row", "part", "bad"), [(4, 0, torch.nan), (40, 0, torch.inf), (66, 1, torch.nan)])
def test_attention_in_tiles_keeps_a_nan_with_its_query_or_its_head(row: int, part: int, bad: float) -> None:
    qkv = draw(2, 70, 3, 2, 64)
    expected = OPS.packed_attention(qkv, 0.25, "bf16")
    qkv[1, row, part, 1, 3] = bad
    out = OPS.packed_attention(qkv, 0.25, "bf16")
    spoiled = (1, row, 1) if part == 0 else (1, slice(None), 1)
    assert out[spoiled].isnan().all()
    expected[spoiled] = torch.nan
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("key", [0, 20, 69])
@pytest.mark.parametrize("spread", [300.0, 3e3])
def test_attention_of_a_logit_far_beyond_all_others(spread: float, key: int) -> None:
    """By millions of powers of two: more than an int32 of 512 steps for each."""
    qkv = draw(1, 70, 3, 2, 64)
    qkv[:, ::3, 0, :, 0] = spread
    qkv[:, :, 1, :, 0], qkv[:, key, 1, :, 0] = -spread, spread
    out = OPS.packed_attention(qkv, 0.25, "bf16")[:, ::3]
    torch.testing.assert_close(out, qkv[:, key : key + 1, 2].expand_as(out), rtol=2**-6, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_masked_tokens_have_no_weight(precision: str) -> None:
    check_masked(precision)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_no_split_of_the_queries_changes_a_bit_of_attention(precision: str) -> None:
    qkv = draw(3, 71, 3, 2, 64)
    qkv[1, 50, 1] *= 100  # rows that leave the range of their first logits
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5, 7, 16):
            torch.set_num_threads(count)
            results.append(OPS.packed_attention(qkv, 0.25, precision))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("head_dim", [7, 64])
@pytest.mark.parametrize("grids", [None, (2, 3), (7, 10), (10, 14)])
def test_related_attention(grids: tuple[int, int] | None, head_dim: int) -> None:
    check_related_attention(2, grids, 3, head_dim)


def test_related_attention_without_images_and_on_any_number_of_threads() -> None:
    matrix = GridUpsample(3, 5).matrix
    qkv, relations = draw(3, 26, 3, 2, 16), draw(3, 2, 10, 10)
    relations[1, 0, 2, 3] = torch.nan
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5, 16):
            torch.set_num_threads(count)
            results.append(OPS.packed_related_attention(qkv, relations, matrix, 0.25, True)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result.nan_to_num(), results[0].nan_to_num()) for result in results)
    assert results[0].isnan().any()
    assert results[0][[0, 2]].isfinite().all()
    assert results[0][1, :, 1].isfinite().all()
    out, logits = OPS.packed_related_attention(qkv[:0], relations[:0], matrix, 0.25, True)
    assert (out.shape, logits.shape) == ((0, 26, 2, 16), (0, 2, 26, 26))


@pytest.mark.parametrize(
    ("what", "relations", "matrix"),
    [
        ("relations must be float32", torch.zeros(2, 3, 5, 5), None),
        ("relations must be float32", torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.zeros(7, 4)),
        ("matrix must be", torch.zeros(2, 3, 4, 4), torch.zeros(6, 4)),
        ("matrix must be", torch.zeros(2, 3, 4, 4), torch.zeros(7, 4, dtype=torch.float64)),
    ],
)
def test_related_attention_refuses(what: str, relations: torch.Tensor, matrix: torch.Tensor | None) -> None:
    with pytest.raises(RuntimeError, match=what):
        OPS.packed_related_attention(draw(2, 7, 3, 3, 8), relations, matrix, 1.0, False)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_mlp_without_norm(precision: str) -> None:
    check_mlp_without_norm(101, 48, 144, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_patch_embed(pixels: torch.dtype, precision: str) -> None:
    images = (torch.rand(5, 3, 28, 42, generator=torch.Generator().manual_seed(0)) * 255).to(pixels)
    check_patch_embed(images, (14, 7), 2, 70, precision)
    check_patch_embed(images[:1], (28, 42), 0, 64, precision)


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "extras"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 50), (3, 197), (65, 5)])
def test_block(batch: int, tokens: int, precision: str, extras: bool) -> None:
    check_block(batch, tokens, SIZES, precision, extras=extras)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_block_of_odd_sizes_and_of_several_groups(precision: str) -> None:
    check_block(2, 7, (33, 3, 11, 77), precision, extras=True)
    check_block(1, 12, (64, 1, 64, 2100), precision, extras=False)


@pytest.mark.parametrize("is_interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("heads", "rotated", "head_dim"), [(1, 50, 64), (2, 45, 64), (1, 49, 14), (2, 1, 10)])
def test_rotary_attention(heads: int, rotated: int, head_dim: int, precision: str, is_interleaved: bool) -> None:
    rotary = draw_rotary(heads, rotated, head_dim, is_interleaved=is_interleaved)
    check_attention(2, 50, 2, head_dim, precision, rotary)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("batch", "tokens", "hidden"), [(1, 1, 96), (3, 50, 96), (2, 41, 77), (5, 12, 2100)])
def test_gated_block_with_rotary(batch: int, tokens: int, hidden: int, precision: str) -> None:
    rotary = draw_rotary(1, tokens - tokens // 9, 16, is_interleaved=tokens % 2 == 0)
    sizes = (48, 3, 16, hidden)
    check_block(batch, tokens, sizes, precision, extras=batch > 1, is_gated=True, positions=rotary)
    check_block(batch, tokens, sizes, precision, extras=False, is_gated=True)


# grid, window, shift, head_dim
WINDOWS = [
    ((6, 6), (3, 3), (0, 0), 32),
    ((8, 8), (4, 4), (2, 2), 32),
    ((9, 7), (4, 3), (1, 2), 10),  # padding
    ((3, 2), (4, 4), (0, 0), 16),  # a window larger than the grid
    ((16, 16), (8, 8), (4, 4), 64),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("grid", "size", "shift", "head_dim"), WINDOWS)
def test_attention_within_windows(grid, size, shift, head_dim, precision) -> None:
    tokens = grid[0] * grid[1]
    padding, cosine = draw(3 * 3 * head_dim, seed=2), draw(3, seed=3).exp()
    check_attention(2, tokens, 3, head_dim, precision, draw_windows(grid, size, shift, 3), padding=padding)
    check_attention(1, tokens, 3, head_dim, precision, draw_windows(grid, size, shift, 3), cosine=cosine)
    check_attention(3, tokens, 3, head_dim, precision, draw_windows(grid, size, shift, 3, has_bias=False))


def test_flops_of_attention_within_windows() -> None:
    windows = draw_windows((6, 6), (3, 3), (0, 0), 3, has_bias=False).windows
    with FlopCounterMode(display=False) as counter:
        torch.ops.vitfast.packed_attention(draw(2, 36, 3, 3, 8), 1.0, "fp32", windows=windows)
    assert counter.get_total_flops() == 2 * 4 * 3 * (4 * 9 * 9 * 8)  # images, windows, heads


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lengths", [(1,), (7, 64, 1), (197, 33, 196)])
def test_attention_within_sequences_of_different_lengths(lengths: tuple[int, ...], precision: str) -> None:
    places = torch.arange(sum(lengths)).split(lengths)
    windows = torch.nn.utils.rnn.pad_sequence(list(places), batch_first=True, padding_value=-1)
    bias = draw(1, 3, max(lengths), max(lengths), seed=4)
    for one in (None, bias):
        sequences = BiasTables(one, windows, None, torch.tensor(lengths))
        check_attention(2, sum(lengths), 3, 32, precision, sequences)
        check_block(1, sum(lengths), (48, 3, 32, 96), precision, extras=True, positions=sequences)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("grid", "head_dim"), [((1, 1), 8), ((3, 5), 32), ((7, 14), 64), ((9, 2), 10)])
def test_attention_with_a_bias_of_queries(grid: tuple[int, int], head_dim: int, precision: str) -> None:
    terms = [draw(head_dim, 2 * side - 1, seed=axis, scale=0.3) for axis, side in enumerate(grid)]
    positions = BiasTables(None, None, None, None, *terms)
    check_attention(2, grid[0] * grid[1], 3, head_dim, precision, positions)
    check_block(2, grid[0] * grid[1], (48, 3, head_dim, 96), precision, extras=True, positions=positions)
    windows = draw_windows((2 * grid[0] - 1, 2 * grid[1]), grid, (0, 0), 3)._replace(
        row_terms=terms[0], column_terms=terms[1]
    )
    check_attention(2, (2 * grid[0] - 1) * 2 * grid[1], 3, head_dim, precision, windows)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 8), (17, 32), (50, 64), (197, 24)])
def test_attention_with_a_bias(tokens: int, head_dim: int, precision: str) -> None:
    bias = BiasTables(draw(1, 3, tokens, tokens, seed=4), None, None)
    check_attention(2, tokens, 3, head_dim, precision, bias)
    check_attention(2, tokens, 3, head_dim, precision, bias, cosine=draw(3, seed=3).exp())
    check_block(3, tokens, (48, 3, head_dim, 96), precision, extras=tokens > 1, positions=bias)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 8), (50, 64), (197, 24)])
def test_attention_with_a_bias_of_keys(tokens: int, head_dim: int, precision: str) -> None:
    qkv, key_bias = draw(3, tokens, 3, 2, head_dim), draw(3, tokens, seed=4)
    out = OPS.packed_attention(qkv, 0.25, precision, key_bias=key_bias)
    for image, one in enumerate(key_bias):
        bias = one.expand(1, 2, tokens, tokens).contiguous()
        expected = OPS.packed_attention(qkv[image : image + 1], 0.25, precision, bias=bias)
        torch.testing.assert_close(out[image : image + 1], expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize(("grid", "size", "shift", "head_dim"), WINDOWS)
def test_block_with_windows(grid, size, shift, head_dim, batch: int, precision: str) -> None:
    windows = draw_windows(grid, size, shift, 3)
    check_block(batch, grid[0] * grid[1], (48, 3, head_dim, 96), precision, extras=batch > 1, positions=windows)


def test_wrong_windows_are_rejected() -> None:
    qkv, windows = draw(1, 4, 3, 2, 8), torch.tensor([[0, 1], [2, 3]])
    for wrong, match in (
        ({"windows": windows.int()}, "windows must be contiguous int64 of 2 dimensions"),
        ({"windows": windows + 1}, "windows must be at least -1 and below 4"),
        ({"windows": windows[:1]}, "windows must hold every token of an image once"),
        ({"windows": windows, "bias": draw(1, 2, 4, 4)}, r"bias must be contiguous float32 of shape \[1, 2, 2, 2\]"),
        ({"windows": windows, "patterns": torch.tensor([0, 1])}, "patterns must be at least 0 and below 1"),
        ({"windows": windows, "patterns": torch.tensor([0])}, "patterns must hold one index per window"),
        ({"windows": windows, "lengths": torch.tensor([0, 2])}, "lengths must be at least 1 and below 3"),
        ({"windows": windows, "lengths": torch.tensor([2])}, "lengths must hold one length per window"),
        ({"row_terms": draw(8, 3), "column_terms": draw(8, 5)}, "row_terms and column_terms must be"),
        ({"row_terms": draw(8, 7)}, "row_terms and column_terms must be"),
        (
            {"row_terms": draw(9, 3), "column_terms": draw(8, 3)},
            r"row_terms must be contiguous float32 of shape \[8, 3\]",
        ),
        ({"bias": draw(1, 2, 4, 3)}, r"bias must be contiguous float32 of shape \[1, 2, 4, 4\]"),
        ({"windows": windows, "padding": draw(16)}, r"padding must be contiguous float32 of shape \[48\]"),
        ({"cosine": draw(3)}, r"cosine must be contiguous float32 of shape \[2\]"),
        ({"windows": windows, "rotary": draw(1, 4, 2, 8)}, "rotary cannot be used with windows"),
        ({"key_bias": draw(4)}, r"key_bias must be contiguous float32 of shape \[1, 4\]"),
        ({"windows": windows, "key_bias": draw(1, 4)}, "key_bias cannot be used with windows"),
    ):
        with pytest.raises(RuntimeError, match=match):
            OPS.packed_attention(qkv, 1.0, "fp32", **wrong)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_factor_multiplies_the_result(precision: str) -> None:
    x, weight, bias, factor = draw(40, 1100), draw(70, 1100, scale=0.03), draw(70), draw(40, 70, seed=1)
    packed = OPS.pack_weight(weight, precision)
    arguments = (x, None, None, None, packed, bias, 70, precision, "silu")
    expected = OPS.packed_linear(*arguments) * factor
    assert torch.equal(OPS.packed_linear(*arguments, factor=factor), expected)
    with pytest.raises(RuntimeError, match="a factor excludes scale and residual"):
        OPS.packed_linear(*arguments, residual=factor, factor=factor)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_images(precision: str) -> None:
    p = block_parameters(48, 3, 16, 96, extras=True)
    assert packed_block(torch.zeros(0, 5, 48), p, 3, "gelu", precision).shape == (0, 5, 48)
    assert packed_linear(torch.zeros(0, 48), p["fc1"], None, precision).shape == (0, 96)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (0, 0), (12, 8)])
def test_patch_embed_refuses_images_without_a_whole_patch(size: tuple[int, int]) -> None:
    packed = OPS.pack_weight(draw(70, 3 * 64), "fp32")
    with pytest.raises(RuntimeError, match="H and W multiples of the patch's, above zero"):
        OPS.packed_patch_embed(torch.zeros(2, 3, *size), packed, None, 70, 8, 8, draw(1, 70), None, "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_blocks_and_images_of_a_call_change_no_bit(precision: str) -> None:
    p = block_parameters(64, 2, 32, 1200, extras=True, is_gated=True)
    rotary = draw_rotary(2, 60, 32, is_interleaved=False)
    x = draw(5, 61, 64)
    expected = x
    for _ in range(3):
        expected = packed_block(expected, p, 2, "gelu", precision, rotary)
    # 1 and 5: each thread has its images; 16: the stages one by one
    results = on_threads((1, 2, 3, 4, 5, 16), lambda: packed_block(x, p, 2, "gelu", precision, rotary, count=3))
    assert all(torch.equal(result, expected) for result in results)
    assert torch.equal(packed_block(x[3:4], p, 2, "gelu", precision, rotary, count=3), expected[3:4])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_changes_no_bit_of_windows(precision: str) -> None:
    p = block_parameters(64, 2, 32, 96, extras=True)
    windows, x = draw_windows((9, 7), (4, 3), (1, 2), 2), draw(5, 63, 64)
    results = on_threads((1, 2, 3, 16), lambda: packed_block(x, p, 2, "gelu", precision, windows, count=2))
    assert torch.equal(
        results[0], packed_block(packed_block(x, p, 2, "gelu", precision, windows), p, 2, "gelu", precision, windows)
    )
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("images", [5, 1])
@pytest.mark.parametrize("windows", [None, draw_windows((9, 7), (4, 3), (1, 2), 2)])
@pytest.mark.parametrize("cosine", [None, draw(2)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_post_norm_blocks_equal_their_operators(
    precision: str, cosine: torch.Tensor | None, windows: BiasTables | None, images: int
) -> None:
    p = block_parameters(64, 2, 32, 96, extras=True) | {"cosine": cosine}
    parameters, options = block_arguments(p, 2, "gelu", precision)
    packed, tables = BlockParameters(*parameters), position_options(windows)
    positions = list(position_arguments(windows)) * 2
    in_windows = {**tables, "padding": None if windows is None else p["qkv_bias"], "cosine": cosine}
    no_norm = (None, None, None)

    def block(x: torch.Tensor) -> torch.Tensor:
        qkv = OPS.packed_linear(x, *no_norm, packed.qkv, p["qkv_bias"], 192, precision, "none")
        attended = OPS.packed_attention(qkv.unflatten(-1, (3, 2, 32)), 32**-0.5, precision, **in_windows).flatten(-2)
        proj = (packed.proj, p["proj_bias"], 64, precision, "none", p["scale1"])
        x = x + vitfast.ops.layer_norm(
            OPS.packed_linear(attended, *no_norm, *proj), p["norm1_weight"], p["norm1_bias"], 1e-6
        )
        fc1, fc2 = (packed.fc1, p["fc1_bias"], 96, None, None), (packed.fc2, p["fc2_bias"], 64)
        hidden = OPS.packed_mlp(x, *no_norm, *fc1, *fc2, precision, "gelu", p["scale2"], None)
        return x + vitfast.ops.layer_norm(hidden, p["norm2_weight"], p["norm2_bias"], 1e-6)

    x = draw(images, 63, 64)
    expected = block(block(x))
    # of 5 images on 1 and 5 threads, each has its images; of 1 image on 2, each has its rows; on 16, stage by stage
    for result in on_threads(
        (1, 2, 5, 16), lambda: OPS.packed_blocks(x, parameters * 2, positions, *options, is_post_norm=True)
    ):
        # in bf16 the block rounds what packed_attention returns in float32
        torch.testing.assert_close(result, expected, rtol=0, atol=0.05 if precision == "bf16" else 0)


def draw_sequences(lengths: Sequence[int]) -> BiasTables:
    """Sequences of tokens one after the other."""
    tokens = torch.arange(sum(lengths)).split(list(lengths))
    windows = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=-1)
    return BiasTables(None, windows, None, torch.tensor(lengths))


@pytest.mark.parametrize("images", [6, 1])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_of_a_call_may_have_different_positions(precision: str, images: int) -> None:
    p, x = block_parameters(64, 2, 32, 96, extras=True), draw(images, 63, 64)
    shifts = [draw_windows((9, 7), (4, 3), shift, 2) for shift in ((0, 0), (1, 2))]
    whole = BiasTables(draw(1, 2, 63, 63), None, None)
    for positions in (
        [*shifts, shifts[0]],
        [None, shifts[1], whole],
        [whole, None, None],
        [draw_sequences((30, 33)), draw_sequences((63,)), None],
        [draw_rotary(2, 60, 32, is_interleaved=True), draw_rotary(1, 63, 32, is_interleaved=True), None],
    ):
        expected = x
        for one in positions:
            expected = packed_block(expected, p, 2, "gelu", precision, one)
        for result in on_threads((1, 2, 16), lambda: packed_blocks(x, p, 2, "gelu", precision, positions)):  # noqa: B023
            assert torch.equal(result, expected)


@pytest.mark.parametrize("lengths", [(40, 37, 45, 41), (90, 1, 3, 17, 52), (600, 2, 3), (5,)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_sequences_of_a_batch_equal_each_alone(precision: str, lengths: tuple[int, ...]) -> None:
    """Of 2 threads and the first lengths, each has its sequences; of other lengths and threads stages are shared."""
    p = block_parameters(64, 2, 32, 96, extras=True)
    x, sequences = draw(1, sum(lengths), 64), draw_sequences(lengths)
    expected = torch.cat(
        [packed_block(one, p, 2, "gelu", precision, count=2) for one in x.split(lengths, dim=1)], dim=1
    )
    results = on_threads((1, 2, 3, 16), lambda: packed_block(x, p, 2, "gelu", precision, sequences, count=2))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_non_finite_number_stays_in_its_image(precision: str, bad: float) -> None:
    p = block_parameters(48, 3, 16, 96, extras=False)
    x = draw(3, 21, 48)
    expected = packed_block(x, p, 3, "gelu", precision)
    x[1, 4, 7] = bad
    out = packed_block(x, p, 3, "gelu", precision)
    assert torch.equal(out[::2], expected[::2])
    assert not out[1, 4].isfinite().any()
    if bad != bad:
        assert out[1].isnan().all()  # every token attends to it


def test_wrong_arguments_are_rejected() -> None:
    packed = OPS.pack_weight(draw(8, 6), "fp32")
    with pytest.raises(RuntimeError, match="precision must be fp32"):
        OPS.pack_weight(draw(8, 6), "fp8")
    with pytest.raises(RuntimeError, match="packed is not a weight"):
        OPS.packed_linear(draw(2, 7), None, None, None, packed, None, 8, "fp32", "none")
    with pytest.raises(RuntimeError, match="activation must be"):
        OPS.packed_linear(draw(2, 6), None, None, None, packed, None, 8, "fp32", "swish")
    with pytest.raises(RuntimeError, match="bias must be"):
        OPS.packed_linear(draw(2, 6), None, None, None, packed, draw(7), 8, "fp32", "none")
    with pytest.raises(RuntimeError, match="residual"):
        OPS.packed_linear(draw(2, 6), None, None, None, packed, None, 8, "fp32", "none", None, draw(2, 7))
    with pytest.raises(RuntimeError, match=r"rotary must be contiguous float32 \[H or 1, at most N, 2, D\]"):
        OPS.packed_attention(draw(1, 5, 3, 2, 8), 1.0, "fp32", draw(1, 6, 2, 8))
    p = {**block_parameters(48, 3, 16, 96, extras=False), "gate": draw(64, 48)}
    with pytest.raises(RuntimeError, match="gate is not a weight"):
        packed_block(draw(1, 5, 48), p, 3, "silu", "fp32")
    options = (1e-6, 1e-6, 3, 16, 0.25, 96, "gelu", "fp32")
    with pytest.raises(RuntimeError, match="parameters must have 17 elements per block, got 16"):
        OPS.packed_blocks(draw(1, 5, 48), [None] * 16, [], *options)
    with pytest.raises(RuntimeError, match="qkv is missing in block 0"):
        OPS.packed_blocks(draw(1, 5, 48), [None] * 17, [None] * 7, *options)
    with pytest.raises(RuntimeError, match="positions must have 7 elements per block, got 6"):
        OPS.packed_blocks(draw(1, 5, 48), [None] * 17, [None] * 6, *options)
    p = {**block_parameters(48, 3, 16, 96, extras=False), "cosine": draw(3)}
    with pytest.raises(RuntimeError, match="rotary cannot be used with cosine"):
        packed_block(draw(1, 5, 48), p, 3, "gelu", "fp32", draw_rotary(1, 5, 16, is_interleaved=False))


def test_the_peak_counts_operations() -> None:
    per_call = {precision: OPS.fma_peak(precision, 10) for precision in PRECISIONS}
    assert OPS.fma_peak("fp32", 20) == 2 * per_call["fp32"]
    assert per_call["int8"] >= per_call["fp32"]


def exactly_summed(rows: int, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Operands whose products, rounded to half, have exact float32 sums in any order.

    Rounded, ``x`` has magnitudes from 0.5 to 1 in steps of 2^-11 and weights are multiples of 1/8 up to 1: sums are
    multiples of 2^-14, below 2^10. Before, ``x`` has all bits of float32, ties among them, and weights lie beside.
    """
    generator = torch.Generator().manual_seed(rows + inputs + outputs)
    x = (0.5 + 0.5 * torch.rand(rows, inputs, generator=generator)) * draw(rows, inputs).sign()
    x[:, ::3] = ((x[:, ::3] * 2**11).floor() + 0.5) * 2**-11  # ties
    weight = (torch.rand(outputs, inputs, generator=generator) * 16 - 8).round() / 8
    return x, weight * (1 + 2**-13), (draw(outputs) * 8).round() / 8


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 48, 70), (197, 192, 65), (11, 770, 130)])
def test_fp16_32_is_bit_true(rows: int, inputs: int, outputs: int) -> None:
    """The product of ``quantize_`` with ``FP16_32Config()``, bit by bit, where no order of sums can differ."""
    x, weight, bias = exactly_summed(rows, inputs, outputs)
    layer = torch.nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    quantized = torch.nn.Sequential(layer)
    vitfast.quantize_(quantized, vitfast.FP16_32Config())
    x[0] = 0.0
    x[0, 0] = 65519.0  # rounded to the largest finite half
    expected = quantized(x).detach()
    assert torch.equal(packed_linear(x, weight, bias, "fp16_32"), expected)
    assert not torch.equal(torch.nn.functional.linear(x, weight, bias), expected), "nothing was rounded"
    x[0, 0] = 65520.0  # overflows
    expected = quantized(x).detach()
    assert not expected[0].isfinite().any()
    torch.testing.assert_close(packed_linear(x, weight, bias, "fp16_32"), expected, rtol=0, atol=0, equal_nan=True)


def idle_shares(threads: Sequence[int], *sizes: int) -> list[Any]:
    return on_threads(threads, lambda: OPS.packed_block_idle_share(*sizes))


def test_the_table_of_idle_threads_is_what_the_split_gives() -> None:
    page = (Path(__file__).parents[2] / "docs" / "internals" / "cpu_engine.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (ViT-\w+) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    heads_of = {"ViT-Ti": 3, "ViT-S": 6, "ViT-B": 12}
    for batch, model, shares in rows:
        heads = heads_of[model]
        idle = idle_shares((2, 4, 8, 16, 32, 64), int(batch), 197, 64 * heads, heads, 64, 256 * heads)
        assert shares.split(" | ") == [f"{100 * share:.1f} %" for share in idle], (batch, model)


def test_idle_share_counts_the_busiest_thread() -> None:
    assert idle_shares((1,), 1, 197, 192, 3, 64, 768) == [0]
    assert idle_shares((2,), 2, 197, 192, 3, 64, 768) == [0]  # one image each
    assert idle_shares((2,), 1, 99, 192, 3, 64, 768) == pytest.approx([1 - 99 / 100])  # 50 and 49 rows
    with pytest.raises(RuntimeError, match="from 1 to 65536"):
        OPS.packed_block_idle_share(0, 197, 192, 3, 64, 768)
