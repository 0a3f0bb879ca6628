"""The CUDA kernel of attention, backward, run on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.simt import SimtError
from support.simt_attention import AttentionBackwardCase, far_below_zero, of_types, random_backward
from support.slow import slow

HALF, BFLOAT = torch.float16, torch.bfloat16
# instances for up to 64, 112 and 200 tokens
EDGES = {HALF: (2, 17, 50, 64, 65, 112, 113, 160, 161, 197, 200), BFLOAT: (17, 50, 65, 113, 161)}
LENGTHS = {HALF: (15, 16, 33, 100)}  # with no edge of their own
# head dimension and length; accesses are not checked in bfloat16, which differs from float16 in registers only
HEAD_DIMS = {HALF: ((8, 50), (24, 197), (32, 50), (40, 50), (48, 197)), BFLOAT: ((40, 50), (48, 112))}
CHECKED_HEAD_DIMS = ((8, 50), (48, 197))


def check_length(variant: str, tokens: int, dtype: torch.dtype) -> None:
    case = random_backward(2, 2 if tokens < 64 else 1, tokens, 64, dtype)
    case.check(case.run(variant=variant))


@pytest.mark.parametrize(("dtype", "tokens"), [*of_types(EDGES), *slow(of_types(LENGTHS))])
def test_every_length(result_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(result_variant, tokens, dtype)


@pytest.mark.parametrize("tokens", EDGES[HALF])
def test_accesses_at_every_length(checked_variant: str, tokens: int) -> None:
    check_length(checked_variant, tokens, HALF)


def check_head_dim(variant: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    head_dim, tokens = sizes
    case = random_backward(1, 2, tokens, head_dim, dtype, packed=False)
    case.check(case.run(variant=variant, order="reversed"))


@pytest.mark.parametrize(("dtype", "sizes"), of_types(HEAD_DIMS))
def test_every_head_dimension(result_variant: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    check_head_dim(result_variant, sizes, dtype)


@pytest.mark.parametrize("sizes", CHECKED_HEAD_DIMS)
def test_accesses_at_every_head_dimension(checked_variant: str, sizes: tuple[int, int]) -> None:
    check_head_dim(checked_variant, sizes, HALF)


@pytest.mark.parametrize(("tokens", "head_dim"), [(201, 64), (50, 72), (50, 12)])
def test_other_sizes_are_refused(tokens: int, head_dim: int) -> None:
    with pytest.raises(SimtError, match="takes up to 200 tokens and head dimensions up to 64 that are multiples of 8"):
        random_backward(1, 1, tokens, head_dim).run()


@pytest.mark.parametrize("tokens", [50, 115])
@pytest.mark.parametrize("bias_batch", [1, 2])
def test_bias_and_logits_have_their_gradients(simt_variant: str, bias_batch: int, tokens: int) -> None:
    check_bias(simt_variant, bias_batch, tokens, HALF)


def test_bias_of_bfloat16_has_its_gradient(result_variant: str) -> None:
    check_bias(result_variant, 2, 50, BFLOAT)


def check_bias(variant: str, bias_batch: int, tokens: int, dtype: torch.dtype) -> None:
    bias = torch.randn(bias_batch, 2, tokens, tokens).to(dtype)
    grad_logits = torch.randn(2, 2, tokens, tokens).to(dtype)
    case = random_backward(2, 2, tokens, 32, dtype, bias=bias, grad_logits=grad_logits)
    case.check(case.run(variant=variant))


def test_a_token_alone_hands_its_gradient_to_v() -> None:
    case = random_backward(2, 3, 1, 64)
    grad_q, grad_k, grad_v = case.run()["grad_qkv"].unbind(2)
    assert torch.equal(grad_v, case.grad_out)
    for grad in (grad_q, grad_k):  # zero but for the rounding of sums
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0.0, atol=1e-3)


def test_a_gradient_of_the_logits_alone() -> None:
    case = random_backward(1, 2, 101, 48, grad_logits=torch.randn(1, 2, 101, 101).half())
    case.check(case.run())


def test_rows_and_columns_that_are_masked() -> None:
    bias = torch.zeros(1, 2, 101, 101)
    bias[:, 0, :, 90:] = -torch.inf
    bias[:, 1, 3, 1:] = -torch.inf
    case = random_backward(2, 2, 101, 64, bias=bias.half())
    results = case.run()
    case.check(results)
    assert not results["grad_qkv"][:, 90:, 1:, 0].any()


def test_a_row_that_attends_to_nothing_has_no_gradient() -> None:
    bias = torch.zeros(1, 1, 50, 50)
    bias[:, :, 7] = -torch.inf
    case = random_backward(2, 1, 50, 64, bias=bias.half())
    grad_qkv = case.run()["grad_qkv"]
    assert grad_qkv.isfinite().all()
    assert not grad_qkv[:, 7, 0].any()


@pytest.mark.parametrize("tokens", [17, 50, 101, 197])
def test_keys_behind_the_last_one_have_no_weight(tokens: int) -> None:
    case = far_below_zero(tokens, 64)
    case.check(case.run())


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(scale: float) -> None:
    case = random_backward(1, 2, 50, 64, scale=scale)
    case.check(case.run())


@pytest.mark.parametrize("tokens", [17, 197])
def test_neither_layout_nor_order_changes_a_bit(tokens: int) -> None:
    packed = random_backward(2 if tokens < 64 else 1, 2, tokens, 64)
    expected = packed.run()["grad_qkv"]
    for order in ("reversed", "1", "2"):
        assert torch.equal(packed.run(order=order)["grad_qkv"], expected)
    assert torch.equal(replace(packed, packed=False).run()["grad_qkv"], expected)


@pytest.mark.parametrize("head_dim", [32, 64])
def test_shared_memory_is_read_without_bank_conflicts(head_dim: int) -> None:
    assert random_backward(1, 1, 101, head_dim).run()["bank_conflicts"].item() == 0


def test_a_nan_stays_in_its_head() -> None:
    case: AttentionBackwardCase = random_backward(2, 2, 50, 64)
    case.grad_out[1, 3, 0, 5] = torch.nan
    grad_qkv = case.run()["grad_qkv"]
    assert grad_qkv[1, :, :, 0].isnan().any()
    grad_qkv[1, :, :, 0] = 0.0
    assert grad_qkv.isfinite().all()
