"""Specific to attention: its two forms, masks, dropout, extreme values and independent images."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import plain
from support.accuracy import assert_same_bits
from support.sample import Make
from vitfast import ops
from vitfast.ops.attention import torch_attention
from vitfast.ops.library import has_kernel
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

SIZES = [(2, 3, 17, 32), (1, 2, 50, 64), (2, 1, 197, 48), (1, 2, 5, 7)]  # [B, H, N, D]


def _qkv(sizes: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Tensor]:
    make = Make(dtype)
    return [make.normal(*sizes, scale=scale) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_packed_form_equals_the_unpacked_one(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    bias = Make(dtype, seed=1).normal(sizes[0], sizes[1], sizes[2], sizes[2])
    packed = torch.stack([tensor.transpose(1, 2) for tensor in _qkv(sizes, dtype)], 2).requires_grad_()
    unpacked = packed.detach().clone().requires_grad_()
    out, logits = ops.attention_packed(packed, bias=bias, return_logits=True)
    q, k, v = unpacked.permute(2, 0, 3, 1, 4)
    expected_out, expected_logits = ops.attention(q, k, v, bias=bias, return_logits=True)
    (out.sum() + logits.square().sum()).backward()
    (expected_out.sum() + expected_logits.square().sum()).backward()
    assert out.is_contiguous()
    pairs = [(out, expected_out.transpose(1, 2)), (logits, expected_logits), (packed.grad, unpacked.grad)]
    for actual, expected in pairs:
        if has_kernel("attention", "cpu") and sizes[3] % 8 == 0:
            assert_same_bits(actual, expected)
        else:
            torch.testing.assert_close(actual, expected)


def test_a_shared_bias_gets_the_sum_of_the_gradients_of_all_images() -> None:
    q, k, v = _qkv((3, 2, 17, 32))
    shared = Make(seed=1).normal(1, 2, 17, 17).requires_grad_()
    each = shared.detach().expand(3, -1, -1, -1).clone().requires_grad_()
    for bias in (shared, each):
        ops.attention(q, k, v, bias=bias).square().sum().backward()
    torch.testing.assert_close(shared.grad, each.grad.sum(0, keepdim=True))


def test_logits_are_scaled_products_plus_bias() -> None:
    q, k, v = _qkv((2, 2, 17, 32))
    bias = Make(seed=1).normal(1, 2, 17, 17)
    _, logits = ops.attention(q, k, v, bias=bias, scale=0.3, return_logits=True)
    torch.testing.assert_close(logits, 0.3 * q @ k.transpose(-2, -1) + bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_masked_keys_are_ignored(dtype: torch.dtype) -> None:
    q, k, v = _qkv((2, 2, 50, 32), dtype)
    mask = torch.zeros(1, 2, 50, 50, dtype=dtype)
    mask[..., 33:] = -torch.inf
    k[..., 33:, :] = 100.0  # with what is masked replaced by large numbers, nothing may change
    exact = plain.attention(q.double(), k[..., :33, :].double(), v[..., :33, :].double())[0]
    yardstick = plain.attention(q, k[..., :33, :], v[..., :33, :])[0]
    out = ops.attention(q, k, v, bias=mask)
    if dtype == torch.float64:
        torch.testing.assert_close(out, exact)
    else:
        assert_as_accurate(out, yardstick, exact, factor=FORWARD_FACTOR)


def test_gradients_of_masked_keys_are_zero_and_the_others_finite() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in _qkv((1, 2, 17, 32)))
    bias = torch.zeros(1, 2, 17, 17)
    bias[..., 9:] = -torch.inf
    bias.requires_grad_()
    ops.attention(q, k, v, bias=bias).square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (q, k, v, bias))
    assert not k.grad[..., 9:, :].any()
    assert not v.grad[..., 9:, :].any()
    assert not bias.grad[..., 9:].any()


@pytest.mark.parametrize("head_dim", [32, 7])  # the kernel, and torch's operators
@pytest.mark.parametrize("return_logits", [False, True])
def test_fully_masked_row_is_zero_and_does_not_affect_others(head_dim: int, return_logits: bool) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in _qkv((1, 2, 17, head_dim)))
    bias = torch.zeros(1, 2, 17, 17)

    def attend() -> torch.Tensor:
        result = ops.attention(q, k, v, bias=bias, return_logits=return_logits)
        return result[0] if isinstance(result, tuple) else result

    expected = attend().detach()
    bias[0, 1, 4] = -torch.inf
    bias.requires_grad_()
    out = attend()
    assert not out[0, 1, 4].any()
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v, bias))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0, 1, 4].any()
    assert not gradients[3][0, 1, 4].any()
    rest = out.detach().clone()
    rest[0, 1, 4] = expected[0, 1, 4]
    torch.testing.assert_close(rest, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_query_spoils_its_own_row_only(bad: float) -> None:
    q, k, v = _qkv((2, 2, 17, 32))
    expected = ops.attention(q, k, v)
    q[1, 0, 3, 5] = bad
    out = ops.attention(q, k, v)
    assert out[1, 0, 3].isnan().all()
    out[1, 0, 3] = expected[1, 0, 3]
    assert_same_bits(out, expected)


def test_a_nan_among_the_values_reaches_its_channel_of_its_head() -> None:
    q, k, v = _qkv((2, 2, 17, 32))
    v[1, 0, 3, 5] = torch.nan
    spoiled = ops.attention(q, k, v).isnan()
    assert spoiled[1, 0, :, 5].all()
    assert int(spoiled.sum()) == 17


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-8, 50.0])
def test_small_and_large_numbers(size: float, dtype: torch.dtype) -> None:
    # a head dimension of 32 and factors of 50: logits of 10^4, whose softmax picks single keys
    q, k, v = _qkv((1, 2, 50, 32), dtype, scale=size)
    exact = plain.attention(q.double(), k.double(), v.double())[0]
    assert_as_accurate(ops.attention(q, k, v), plain.attention(q, k, v)[0], exact, factor=FORWARD_FACTOR)


def test_logits_of_float16_may_exceed_its_range() -> None:
    # torch's float16 softmax gives NaN here: only the kernel accumulates in float32
    q = torch.full((1, 1, 16, 64), 60.0, dtype=torch.float16)
    v = Make(torch.float16).normal(1, 1, 16, 64)
    out = ops.attention(q, q, v, scale=1.0)
    if has_kernel("attention", "cpu"):
        torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(v), atol=1e-3, rtol=1e-3)


def test_equal_keys_give_the_mean_of_the_values_and_an_integer_scale_is_a_number() -> None:
    q, k, v = _qkv((1, 2, 49, 32))
    torch.testing.assert_close(ops.attention(q, k, v, scale=0), v.mean(2, keepdim=True).expand_as(v))
    torch.testing.assert_close(ops.attention(q, k, v, scale=1), ops.attention(q, k, v, scale=1.0), rtol=0, atol=0)


def test_dropout_drops_the_given_share_and_scales_the_rest() -> None:
    q, k, _ = _qkv((2, 4, 64, 64))
    identity = torch.eye(64).expand(2, 4, 64, 64).contiguous()
    kept = ops.attention(q, k, identity)
    dropped = ops.attention(q, k, identity, dropout_p=0.25)
    is_zero = dropped == 0
    # 32,768 probabilities: four standard deviations of the share are 0.0096
    assert abs(is_zero.float().mean().item() - 0.25) < 0.0096
    torch.testing.assert_close(dropped[~is_zero], (kept / 0.75)[~is_zero])


def test_an_unusual_head_dimension_is_reported() -> None:
    if not has_kernel("attention", "cpu"):
        pytest.skip("pure PyTorch: every head dimension runs on torch's operators")
    q, k, v = _qkv((1, 1, 4, 11))
    with pytest.warns(UserWarning, match="multiples of 8; 11 runs on torch"):
        ops.attention(q, k, v)


def test_the_limits_are_those_of_the_kernels() -> None:
    module = importlib.import_module("vitfast.ops.attention")
    header = (Path(__file__).resolve().parents[2] / "csrc/attention/attention.h").read_text()
    constants = re.findall(r"^constexpr int attention_(\w+) = ([\d *]+);", header, re.MULTILINE)
    values = {name: math.prod(map(int, value.split("*"))) for name, value in constants}
    limits = {
        "max_head_dim": module.MAX_HEAD_DIM,
        "head_dim_multiple": module.HEAD_DIM_MULTIPLE,
        "cuda_max_tokens": module.CUDA_MAX_TOKENS,
        "cuda_max_head_dim": module.CUDA_MAX_HEAD_DIM,
        "backward_small_tokens": module.BACKWARD_SMALL_TOKENS,
        "backward_largest_bytes": module.BACKWARD_LARGEST_BYTES,
    }
    assert {name: values.get(name) for name in limits} == limits


@pytest.mark.parametrize(
    ("sizes", "options", "runs"),
    [
        ((64, 12, 197, 64), {}, True),
        ((1, 6, 200, 40), {}, True),
        ((64, 12, 201, 64), {}, False),  # tokens
        ((64, 12, 197, 72), {}, False),  # columns of a head
        ((64, 12, 197, 60), {}, False),
        ((64, 12, 197, 64), {"dtype": torch.float32}, False),
        ((11, 12, 197, 64), {"return_logits": True}, True),
        ((10, 12, 197, 64), {"return_logits": True}, False),  # fewer heads than multiprocessors
        ((10, 12, 197, 64), {"bias": True}, False),
        ((64, 12, 197, 64), {"gradients": True}, True),
        ((64, 12, 197, 64), {"gradients": True, "packed": False}, False),
        ((64, 12, 197, 64), {"gradients": True, "shared_bytes": 99 * 1024}, False),
        ((64, 12, 112, 64), {"gradients": True, "shared_bytes": 99 * 1024}, True),
    ],
)
def test_cuda_kernels_run_where_they_are_faster(
    sizes: tuple[int, ...], options: dict[str, Any], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("vitfast.ops.attention")
    monkeypatch.setattr(module, "fills_gpu", lambda blocks, device: blocks >= 132)
    available = options.get("shared_bytes", 227 * 1024)
    monkeypatch.setattr(module, "has_shared_memory", lambda device, needed: needed <= available)
    like = torch.empty(0, dtype=options.get("dtype", torch.bfloat16), requires_grad=options.get("gradients", False))
    tensors = (like,) if options.get("packed", True) else (like, like, like)
    has_logits = options.get("bias", False) or options.get("return_logits", False)
    assert module._has_cuda_kernel(tensors, sizes, has_logits, options.get("gradients", False)) == runs


def test_torchs_operator_for_an_empty_batch_has_gradients() -> None:
    q, k, v = (torch.empty(0, 2, tokens, 8, requires_grad=True) for tokens in (1, 5, 5))
    out = torch_attention(q, k, v)
    assert out.shape == (0, 2, 1, 8)
    out.sum().backward()
    assert all(tensor.grad is not None for tensor in (q, k, v))
