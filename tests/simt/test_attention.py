"""The CUDA kernel of attention, forward, run on the host."""

from __future__ import annotations

import pytest
import torch

from support.simt import SimtError
from support.simt_attention import AttentionCase, dominant_case, negative_case, of_types, random_case
from support.slow import slow

HALF, BFLOAT = torch.float16, torch.bfloat16
# instances for up to 56, 104, 152 and 200 tokens
EDGES = {HALF: (1, 17, 50, 56, 57, 104, 105, 152, 153, 197, 200), BFLOAT: (17, 50, 57, 105, 153)}
LENGTHS = {HALF: (15, 16, 31, 33, 49, 100, 101, 196, 198)}  # with no edge of their own
# accesses are not checked in bfloat16, which differs from float16 in registers only
HEAD_DIMS = {HALF: (8, 24, 32, 40, 48, 56, 64), BFLOAT: (40,)}
CHECKED_HEAD_DIMS = (8, 40)


def check_length(variant: str, tokens: int, dtype: torch.dtype) -> None:
    # 2 x 3 heads: a block with several of them is not full
    case = random_case(2, 3 if tokens < 64 else 1, tokens, 64, dtype)
    case.check(case.run(variant=variant))


@pytest.mark.parametrize(("dtype", "tokens"), [*of_types(EDGES), *slow(of_types(LENGTHS))])
def test_every_length(result_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(result_variant, tokens, dtype)


@pytest.mark.parametrize("tokens", EDGES[HALF])
def test_accesses_at_every_length(checked_variant: str, tokens: int) -> None:
    check_length(checked_variant, tokens, HALF)


def check_head_dim(variant: str, head_dim: int, dtype: torch.dtype) -> None:
    case = random_case(2, 1, 50, head_dim, dtype, packed=False)
    case.check(case.run(variant=variant, order="reversed"))


@pytest.mark.parametrize(("dtype", "head_dim"), of_types(HEAD_DIMS))
def test_every_head_dimension(result_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    check_head_dim(result_variant, head_dim, dtype)


@pytest.mark.parametrize("head_dim", CHECKED_HEAD_DIMS)
def test_accesses_at_every_head_dimension(checked_variant: str, head_dim: int) -> None:
    check_head_dim(checked_variant, head_dim, HALF)


@pytest.mark.parametrize(("tokens", "head_dim"), [(201, 64), (50, 72), (50, 12)])
def test_other_sizes_are_refused(tokens: int, head_dim: int) -> None:
    with pytest.raises(SimtError, match="takes up to 200 tokens and head dimensions up to 64 that are multiples of 8"):
        random_case(1, 1, tokens, head_dim).run()


@pytest.mark.parametrize("tokens", [17, 50, 101, 145, 197])
@pytest.mark.parametrize("make", [negative_case, dominant_case])
def test_inputs_that_show_a_wrong_edge(make, tokens: int) -> None:
    case = make(tokens, 64)
    case.check(case.run())


@pytest.mark.parametrize("tokens", [50, 131])
@pytest.mark.parametrize("bias_batch", [1, 2])
def test_bias(simt_variant: str, bias_batch: int, tokens: int) -> None:
    check_bias(simt_variant, bias_batch, tokens, HALF)


def test_bias_of_bfloat16(result_variant: str) -> None:
    check_bias(result_variant, 2, 50, BFLOAT)


def check_bias(variant: str, bias_batch: int, tokens: int, dtype: torch.dtype) -> None:
    bias = torch.randn(bias_batch, 3, tokens, tokens).to(dtype)
    case = random_case(2, 3, tokens, 32, dtype, bias=bias)
    case.check(case.run(variant=variant))


def test_rows_and_columns_that_are_masked() -> None:
    bias = torch.zeros(1, 2, 101, 101)
    bias[:, :, 7] = -torch.inf  # this row attends to nothing
    bias[:, 1] = -torch.inf  # nor does this head
    bias[:, 0, :, 90:] = -torch.inf
    case = random_case(2, 2, 101, 64, bias=bias.half())
    results = case.run()
    assert not results["out"][:, :, 1].any()
    assert not results["lse"][:, 1].any()
    case.check(results)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(scale: float) -> None:
    case = random_case(1, 2, 50, 64, scale=scale)
    case.check(case.run())


def test_a_nan_spoils_its_own_rows_only() -> None:
    case = random_case(2, 1, 50, 64)
    case.qkv[1, 3, 0, 0, 5] = torch.nan  # in a query
    out = case.run()["out"]
    assert out[1, 3].isnan().all()
    out[1, 3] = 0.0
    assert out.isfinite().all()


@pytest.mark.parametrize("tokens", [17, 197])
def test_neither_layout_nor_order_changes_a_bit(tokens: int) -> None:
    packed = random_case(3 if tokens < 64 else 1, 2, tokens, 64)
    results = packed.run()
    runs = [packed.run(order=order) for order in ("reversed", "1", "2")]
    runs.append(AttentionCase(packed.qkv, packed=False).run())
    for other in runs:
        assert all(torch.equal(results[name], other[name]) for name in ("out", "lse", "logits"))


@pytest.mark.parametrize("head_dim", [32, 48, 64])
def test_shared_memory_is_read_without_bank_conflicts(head_dim: int) -> None:
    assert random_case(1, 1, 101, head_dim).run()["bank_conflicts"].item() == 0
