"""The CUDA kernel of attention, backward, run on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.simt_attention import AttentionBackwardCase, far_below_zero, of_types, random_backward
from support.slow import slow

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
BOTH_SIZES = (HALF, FLOAT)  # of elements: 16 bits and 32, which always go by tiles
# 16-bit types have instances for up to 64, 112 and 208 tokens; above, and where D > 64, rows are streamed in tiles of
# 64 (32); a block owns 64
EDGES = {
    HALF: (2, 17, 50, 64, 65, 112, 113, 160, 161, 197, 208, 209, 256, 257, 321),
    BFLOAT: (17, 50, 65, 113, 161, 209, 257),
    FLOAT: (2, 17, 33, 64, 65, 129),
}
# with no edge of their own
LENGTHS = {HALF: (15, 16, 33, 100, 272, 320, 385), FLOAT: (16, 50, 100, 197, 257)}
# head dimension and length: whole, then by tiles; accesses are checked in the instances of 64 and 128 columns, and not
# in bfloat16, which differs from float16 in registers only
HEAD_DIMS = {
    HALF: (
        *((8, 50), (24, 197), (32, 50), (40, 50), (48, 197), (72, 50), (96, 112), (128, 112)),
        *((8, 257), (32, 300), (48, 259), (72, 113), (96, 128), (120, 197), (128, 161)),
    ),
    BFLOAT: ((40, 50), (96, 112), (48, 259)),
    FLOAT: ((8, 50), (24, 197), (32, 300), (72, 50), (120, 197), (128, 112)),
}
CHECKED_HEAD_DIMS = {
    HALF: ((8, 50), (48, 197), (72, 50), (128, 112), (32, 300), (120, 197)),
    FLOAT: ((24, 50), (120, 130)),
}


def check_length(variant: str, tokens: int, dtype: torch.dtype) -> None:
    case = random_backward(2, 2 if tokens < 64 else 1, tokens, 64, dtype)
    case.check(case.run(variant=variant))


@pytest.mark.parametrize(("dtype", "tokens"), [*of_types(EDGES), *slow(of_types(LENGTHS))])
def test_every_length(result_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(result_variant, tokens, dtype)


@pytest.mark.parametrize(("dtype", "tokens"), of_types({dtype: EDGES[dtype] for dtype in BOTH_SIZES}))
def test_accesses_at_every_length(checked_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(checked_variant, tokens, dtype)


def test_tiles_replace_the_instance_that_exceeds_shared_memory() -> None:
    whole = random_backward(1, 1, 197, 64)
    tiled = replace(whole, shared_bytes=99 * 1024)
    results = tiled.run()
    assert results.pop("row_statistics")[..., :197].isfinite().all()
    tiled.check(results)
    assert torch.equal(results["grad_qkv"], whole.run()["grad_qkv"])  # sums have the same order


def check_head_dim(variant: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    head_dim, tokens = sizes
    case = random_backward(1, 2, tokens, head_dim, dtype, packed=False)
    case.check(case.run(variant=variant, order="reversed"))


@pytest.mark.parametrize(("dtype", "sizes"), of_types(HEAD_DIMS))
def test_every_head_dimension(result_variant: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    check_head_dim(result_variant, sizes, dtype)


@pytest.mark.parametrize(("dtype", "sizes"), of_types(CHECKED_HEAD_DIMS))
def test_accesses_at_every_head_dimension(checked_variant: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    check_head_dim(checked_variant, sizes, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOTH_SIZES)
def test_a_long_sequence(dtype: torch.dtype) -> None:
    case = random_backward(1, 1, 1030, 32, dtype)
    case.check(case.run())


@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype"), [(50, 32, HALF), (259, 32, HALF), (115, 72, HALF), (70, 32, FLOAT)]
)
@pytest.mark.parametrize("bias_batch", [1, 2])
def test_bias_and_logits_have_their_gradients(
    simt_variant: str, bias_batch: int, tokens: int, head_dim: int, dtype: torch.dtype
) -> None:
    check_bias(simt_variant, bias_batch, tokens, head_dim, dtype)


def test_bias_of_bfloat16_has_its_gradient(result_variant: str) -> None:
    check_bias(result_variant, 2, 50, 32, BFLOAT)


def check_bias(variant: str, bias_batch: int, tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    bias = torch.randn(bias_batch, 2, tokens, tokens).to(dtype)
    grad_logits = torch.randn(2, 2, tokens, tokens).to(dtype)
    case = random_backward(2, 2, tokens, head_dim, dtype, bias=bias, grad_logits=grad_logits)
    case.check(case.run(variant=variant))


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


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 101), (HALF, 300), (FLOAT, 101)])
def test_rows_and_columns_that_are_masked(tokens: int, dtype: torch.dtype) -> None:
    bias = torch.zeros(1, 2, tokens, tokens)
    bias[:, 0, :, 90:] = -torch.inf
    bias[:, 1, 3, 1:] = -torch.inf
    case = random_backward(2, 2, tokens, 64, dtype, bias=bias.to(dtype))
    results = case.run()
    case.check(results)
    assert not results["grad_qkv"][:, 90:, 1:, 0].any()


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 50), (HALF, 257), (FLOAT, 70)])
def test_a_row_that_attends_to_nothing_has_no_gradient(tokens: int, dtype: torch.dtype) -> None:
    bias = torch.zeros(1, 1, tokens, tokens)
    bias[:, :, 7] = -torch.inf
    case = random_backward(2, 1, tokens, 64, dtype, bias=bias.to(dtype))
    grad_qkv = case.run()["grad_qkv"]
    assert grad_qkv.isfinite().all()
    assert not grad_qkv[:, 7, 0].any()


@pytest.mark.parametrize(("dtype", "tokens"), of_types({HALF: (17, 50, 101, 197, 261), FLOAT: (17, 50, 101)}))
def test_keys_behind_the_last_one_have_no_weight(tokens: int, dtype: torch.dtype) -> None:
    case = far_below_zero(tokens, 64, dtype)
    case.check(case.run())


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 50), (HALF, 257), (FLOAT, 70)])
@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(scale: float, tokens: int, dtype: torch.dtype) -> None:
    case = random_backward(1, 2, tokens, 64, dtype, scale=scale)
    case.check(case.run())


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 17), (HALF, 197), (HALF, 321), (FLOAT, 17), (FLOAT, 70)])
def test_neither_layout_nor_order_changes_a_bit(tokens: int, dtype: torch.dtype) -> None:
    packed = random_backward(2 if tokens < 64 else 1, 2, tokens, 64, dtype)
    expected = packed.run()["grad_qkv"]
    for order in ("reversed", "1", "2"):
        assert torch.equal(packed.run(order=order)["grad_qkv"], expected)
    assert torch.equal(replace(packed, packed=False).run()["grad_qkv"], expected)


@pytest.mark.parametrize(("dtype", "tokens"), [(HALF, 101), (HALF, 257), (FLOAT, 101)])
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
