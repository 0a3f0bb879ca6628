"""The CUDA kernel of attention, backward, run on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.simt_attention import AttentionBackwardCase, far_below_zero, random_backward

# from 257 tokens on (113 where D > 64) rows are streamed in tiles of 64 (32); a block owns 64
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BOTH_SIZES = (torch.float16, torch.float32)  # of elements: 16 bits and 32, which always go by tiles
LENGTHS = (2, 15, 16, 17, 33, 50, 64, 65, 100, 112, 113, 160, 161, 197, 208, 209, 256, 257, 272, 320, 321, 385)
# head dimension and length: whole, then by tiles
HEAD_DIMS = (
    *((8, 50), (24, 197), (32, 50), (40, 50), (48, 197), (72, 50), (96, 112), (128, 112)),
    *((8, 257), (32, 300), (48, 259), (72, 113), (96, 128), (120, 197), (128, 161)),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_every_length(simt_variant: str, tokens: int, dtype: torch.dtype) -> None:
    case = random_backward(2, 2 if tokens < 64 else 1, tokens, 64, dtype)
    case.check(case.run(variant=simt_variant))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "tokens"), HEAD_DIMS)
def test_every_head_dimension(simt_variant: str, head_dim: int, tokens: int, dtype: torch.dtype) -> None:
    case = random_backward(1, 2, tokens, head_dim, dtype, packed=False)
    case.check(case.run(variant=simt_variant, order="reversed"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOTH_SIZES)
def test_a_long_sequence(dtype: torch.dtype) -> None:
    case = random_backward(1, 1, 1030, 32, dtype)
    case.check(case.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "head_dim"), [(50, 32), (259, 32), (115, 72)])
@pytest.mark.parametrize("bias_batch", [1, 2])
def test_bias_and_logits_have_their_gradients(
    simt_variant: str, bias_batch: int, tokens: int, head_dim: int, dtype: torch.dtype
) -> None:
    bias = torch.randn(bias_batch, 2, tokens, tokens).to(dtype)
    grad_logits = torch.randn(2, 2, tokens, tokens).to(dtype)
    case = random_backward(2, 2, tokens, head_dim, dtype, bias=bias, grad_logits=grad_logits)
    case.check(case.run(variant=simt_variant))


def test_a_token_alone_hands_its_gradient_to_v() -> None:
    case = random_backward(2, 3, 1, 64)
    grad_q, grad_k, grad_v = case.run()["grad_qkv"].unbind(2)
    assert torch.equal(grad_v, case.grad_out)
    for grad in (grad_q, grad_k):  # zero but for the rounding of sums
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("tokens", [101, 257])
def test_a_gradient_of_the_logits_alone(tokens: int) -> None:
    case = random_backward(1, 2, tokens, 48, grad_logits=torch.randn(1, 2, tokens, tokens).half())
    case.check(case.run())


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [101, 300])
def test_rows_and_columns_that_are_masked(tokens: int, dtype: torch.dtype) -> None:
    bias = torch.zeros(1, 2, tokens, tokens)
    bias[:, 0, :, 90:] = -torch.inf
    bias[:, 1, 3, 1:] = -torch.inf
    case = random_backward(2, 2, tokens, 64, dtype, bias=bias.to(dtype))
    results = case.run()
    case.check(results)
    assert not results["grad_qkv"][:, 90:, 1:, 0].any()


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [50, 257])
def test_a_row_that_attends_to_nothing_has_no_gradient(tokens: int, dtype: torch.dtype) -> None:
    bias = torch.zeros(1, 1, tokens, tokens)
    bias[:, :, 7] = -torch.inf
    case = random_backward(2, 1, tokens, 64, dtype, bias=bias.to(dtype))
    grad_qkv = case.run()["grad_qkv"]
    assert grad_qkv.isfinite().all()
    assert not grad_qkv[:, 7, 0].any()


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [17, 50, 101, 197, 261])
def test_keys_behind_the_last_one_have_no_weight(tokens: int, dtype: torch.dtype) -> None:
    case = far_below_zero(tokens, 64, dtype)
    case.check(case.run())


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [50, 257])
@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(scale: float, tokens: int, dtype: torch.dtype) -> None:
    case = random_backward(1, 2, tokens, 64, dtype, scale=scale)
    case.check(case.run())


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [17, 197, 321])
def test_neither_layout_nor_order_changes_a_bit(tokens: int, dtype: torch.dtype) -> None:
    packed = random_backward(2, 2, tokens, 64, dtype)
    expected = packed.run()["grad_qkv"]
    for order in ("reversed", "1", "2"):
        assert torch.equal(packed.run(order=order)["grad_qkv"], expected)
    assert torch.equal(replace(packed, packed=False).run()["grad_qkv"], expected)


@pytest.mark.parametrize("dtype", BOTH_SIZES)
@pytest.mark.parametrize("tokens", [101, 257])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_shared_memory_is_read_without_bank_conflicts(head_dim: int, tokens: int, dtype: torch.dtype) -> None:
    assert random_backward(1, 1, tokens, head_dim, dtype).run()["bank_conflicts"].item() == 0


@pytest.mark.parametrize("tokens", [50, 257])
def test_a_nan_stays_in_its_head(tokens: int) -> None:
    case: AttentionBackwardCase = random_backward(2, 2, tokens, 64)
    case.grad_out[1, 3, 0, 5] = torch.nan
    grad_qkv = case.run()["grad_qkv"]
    assert grad_qkv[1, :, :, 0].isnan().any()
    grad_qkv[1, :, :, 0] = 0.0
    assert grad_qkv.isfinite().all()
