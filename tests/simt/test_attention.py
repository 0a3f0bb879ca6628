"""The CUDA kernel of attention, forward, run on the host."""

from __future__ import annotations

import pytest
import torch

from support.simt_attention import AttentionCase, dominant_case, negative_case, of_types, positive_case, random_case
from support.slow import slow

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
BOTH_SIZES = (HALF, FLOAT)  # of elements: 16 bits and 32, which always go by tiles (of 32 keys)
# 16-bit types have instances for up to 56, 104, 152 and 200 tokens; above, and where D > 64, keys are streamed in tiles
# of 64; a warp processes 32 queries, a block 128
EDGES = {
    HALF: (1, 17, 50, 56, 57, 104, 105, 152, 153, 197, 200, 201, 255, 256, 257, 272, 321),
    BFLOAT: (17, 50, 57, 105, 153, 201, 257),
    FLOAT: (1, 17, 32, 33, 64, 128, 129, 257),
}
# with no edge of their own
LENGTHS = {
    HALF: (15, 16, 31, 33, 49, 100, 101, 196, 198, 320, 384, 577),
    FLOAT: (15, 16, 31, 50, 100, 197, 256, 320, 321, 577),
}
# every instance, and numbers of columns that do not fill one; accesses are checked in those of 64 and 128 columns, and
# not in bfloat16, which differs from float16 in registers only
HEAD_DIMS = {
    HALF: (8, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128),
    BFLOAT: (40, 104),
    FLOAT: (8, 32, 40, 64, 72, 96, 104, 128),
}
CHECKED_HEAD_DIMS = {HALF: (8, 40, 72, 128), FLOAT: (40, 64, 104, 128)}


def check_length(variant: str, tokens: int, dtype: torch.dtype) -> None:
    # 2 x 3 heads: a block with several of them is not full
    case = random_case(2, 3 if tokens < 64 else 1, tokens, 64, dtype)
    case.check(case.run(variant=variant))


@pytest.mark.parametrize(("dtype", "tokens"), [*of_types(EDGES), *slow(of_types(LENGTHS))])
def test_every_length(result_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(result_variant, tokens, dtype)


@pytest.mark.parametrize(("dtype", "tokens"), of_types({dtype: EDGES[dtype] for dtype in BOTH_SIZES}))
def test_accesses_at_every_length(checked_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(checked_variant, tokens, dtype)


def check_head_dim(variant: str, head_dim: int, tokens: int, dtype: torch.dtype) -> None:
    case = random_case(2, 1, tokens, head_dim, dtype, packed=False)
    case.check(case.run(variant=variant, order="reversed"))


@pytest.mark.parametrize(("dtype", "head_dim"), of_types(HEAD_DIMS))
def test_every_head_dimension(result_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    check_head_dim(result_variant, head_dim, 50, dtype)


@pytest.mark.parametrize(("dtype", "head_dim"), of_types(CHECKED_HEAD_DIMS))
def test_accesses_at_every_head_dimension(checked_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    check_head_dim(checked_variant, head_dim, 50, dtype)


@pytest.mark.parametrize(("dtype", "head_dim"), of_types({HALF: (8, 40, 72, 80, 96, 128), FLOAT: (80, 128)}))
def test_every_head_dimension_by_tiles(result_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    check_head_dim(result_variant, head_dim, 261, dtype)


@pytest.mark.parametrize(("dtype", "head_dim"), [(HALF, 40), (HALF, 128), (FLOAT, 104)])
def test_accesses_by_tiles(checked_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    check_head_dim(checked_variant, head_dim, 261, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOTH_SIZES)
def test_a_long_sequence(dtype: torch.dtype) -> None:
    case = random_case(1, 1, 4100, 32, dtype)
    case.check(case.run())


@pytest.mark.parametrize(
    ("dtype", "tokens"), of_types({HALF: (17, 50, 101, 145, 197, 256, 257, 321), FLOAT: (17, 50, 101, 257)})
)
@pytest.mark.parametrize("make", [negative_case, dominant_case])
def test_inputs_that_show_a_wrong_edge(make, tokens: int, dtype: torch.dtype) -> None:
    case = make(tokens, 64, dtype)
    case.check(case.run())


def test_sums_of_floats_do_not_shrink() -> None:
    case = positive_case(577, 32)
    case.check(case.run())


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 50), (HALF, 259), (FLOAT, 131)])
@pytest.mark.parametrize("bias_batch", [1, 2])
def test_bias(simt_variant: str, bias_batch: int, tokens: int, dtype: torch.dtype) -> None:
    check_bias(simt_variant, bias_batch, tokens, dtype)


def test_bias_of_bfloat16(result_variant: str) -> None:
    check_bias(result_variant, 2, 50, BFLOAT)


def check_bias(variant: str, bias_batch: int, tokens: int, dtype: torch.dtype) -> None:
    bias = torch.randn(bias_batch, 3, tokens, tokens).to(dtype)
    case = random_case(2, 3, tokens, 32, dtype, bias=bias)
    case.check(case.run(variant=variant))


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


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 17), (HALF, 197), (HALF, 321), (FLOAT, 17), (FLOAT, 145)])
def test_neither_layout_nor_order_changes_a_bit(tokens: int, dtype: torch.dtype) -> None:
    packed = random_case(3 if tokens < 64 else 1, 2, tokens, 64, dtype)
    results = packed.run()
    runs = [packed.run(order=order) for order in ("reversed", "1", "2")]
    runs.append(AttentionCase(packed.qkv, packed=False).run())
    for other in runs:
        assert all(torch.equal(results[name], other[name]) for name in ("out", "lse", "logits"))


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 101), (HALF, 257), (FLOAT, 101)])
@pytest.mark.parametrize("head_dim", [32, 48, 64, 80, 96, 128])
def test_shared_memory_is_read_without_bank_conflicts(head_dim: int, tokens: int, dtype: torch.dtype) -> None:
    assert random_case(1, 1, tokens, head_dim, dtype).run()["bank_conflicts"].item() == 0
