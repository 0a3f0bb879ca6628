"""The CUDA kernel of attention, forward, run on the host."""

from __future__ import annotations

import pytest
import torch

from support.simt_attention import AttentionCase, dominant_case, negative_case, positive_case, random_case

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BOTH_SIZES = (torch.float16, torch.float32)  # of elements: 16 bits and 32, which always go by tiles (of 32 keys)
LENGTHS = (1, 15, 16, 17, 31, 33, 49, 50, 56, 57, 100, 101, 104, 105, 152, 153, 196, 197, 198, 200, 201, 255, 256)
# from 257 tokens on keys are streamed in tiles of 64; a warp processes 32 queries, a block 128
LONG_LENGTHS = (257, 272, 320, 321, 384, 577)
HEAD_DIMS = (8, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", LENGTHS + LONG_LENGTHS)
def test_every_length(simt_variant: str, tokens: int, dtype: torch.dtype) -> None:
    # 2 x 3 heads: a block with several of them is not full
    case = random_case(2, 3 if tokens < 64 else 1, tokens, 64, dtype)
    case.check(case.run(variant=simt_variant))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dimension(simt_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    case = random_case(2, 1, 50, head_dim, dtype, packed=False)
    case.check(case.run(variant=simt_variant, order="reversed"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 40, 72, 80, 96, 128])
def test_every_head_dimension_by_tiles(simt_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    case = random_case(1, 2, 261, head_dim, dtype, packed=False)
    case.check(case.run(variant=simt_variant, order="reversed"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOTH_SIZES)
def test_a_long_sequence(dtype: torch.dtype) -> None:
    case = random_case(1, 1, 4100, 32, dtype)
    case.check(case.run())


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [17, 50, 101, 145, 197, 256, 257, 321])
@pytest.mark.parametrize("make", [negative_case, dominant_case])
def test_inputs_that_show_a_wrong_edge(make, tokens: int, dtype: torch.dtype) -> None:
    case = make(tokens, 64, dtype)
    case.check(case.run())


def test_sums_of_floats_do_not_shrink() -> None:
    case = positive_case(577, 32)
    case.check(case.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [50, 259])
@pytest.mark.parametrize("bias_batch", [1, 2])
def test_bias(simt_variant: str, bias_batch: int, tokens: int, dtype: torch.dtype) -> None:
    bias = torch.randn(bias_batch, 3, tokens, tokens).to(dtype)
    case = random_case(2, 3, tokens, 32, dtype, bias=bias)
    case.check(case.run(variant=simt_variant))


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [101, 300])
def test_rows_and_columns_that_are_masked(tokens: int, dtype: torch.dtype) -> None:
    bias = torch.zeros(1, 2, tokens, tokens)
    bias[:, :, 7] = -torch.inf  # this row attends to nothing
    bias[:, 1] = -torch.inf  # nor does this head
    bias[:, 0, :, tokens - 11 :] = -torch.inf
    case = random_case(2, 2, tokens, 64, dtype, bias=bias.to(dtype))
    results = case.run()
    assert not results["out"][:, :, 1].any()
    assert not results["lse"][:, 1].any()
    case.check(results)


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("keys", [slice(70), slice(64, 256), slice(192, None)])
def test_fully_masked_tiles_of_keys(keys: slice, dtype: torch.dtype) -> None:
    bias = torch.zeros(1, 1, 300, 300)
    bias[..., 5:, keys] = -torch.inf
    case = random_case(2, 1, 300, 64, dtype, bias=bias.to(dtype))
    case.check(case.run())


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [50, 257])
@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(scale: float, tokens: int, dtype: torch.dtype) -> None:
    case = random_case(1, 2, tokens, 64, dtype, scale=scale)
    case.check(case.run())


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [50, 257])
def test_a_nan_spoils_its_own_rows_only(tokens: int, dtype: torch.dtype) -> None:
    case = random_case(2, 1, tokens, 64, dtype)
    case.qkv[1, 3, 0, 0, 5] = torch.nan  # in a query
    out = case.run()["out"]
    assert out[1, 3].isnan().all()
    out[1, 3] = 0.0
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [17, 197, 321])
def test_neither_layout_nor_order_changes_a_bit(tokens: int, dtype: torch.dtype) -> None:
    packed = random_case(3, 2, tokens, 64, dtype)
    results = packed.run()
    runs = [packed.run(order=order) for order in ("reversed", "1", "2")]
    runs.append(AttentionCase(packed.qkv, packed=False).run())
    for other in runs:
        assert all(torch.equal(results[name], other[name]) for name in ("out", "lse", "logits"))


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [101, 257])
@pytest.mark.parametrize("head_dim", [32, 48, 64, 80, 96, 128])
def test_shared_memory_is_read_without_bank_conflicts(head_dim: int, tokens: int, dtype: torch.dtype) -> None:
    assert random_case(1, 1, tokens, head_dim, dtype).run()["bank_conflicts"].item() == 0
