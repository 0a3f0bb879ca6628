"""Specific to LayerNorm: parameter dtypes, large means, constant rows, and independent rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support import plain
from support.accuracy import assert_same_bits, cotangents
from support.sample import Make
from vitfast import ops
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate

LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_float32_parameters_with_low_precision_inputs(dtype: torch.dtype) -> None:
    x = Make(dtype).normal(5, 17, 192, mean=0.5)
    weight, bias = Make(seed=1).normal(192, scale=0.2, mean=1.0), Make(seed=2).normal(192)

    def run(function: object, *arguments: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in arguments]
        out = function(*leaves)  # type: ignore[operator]
        grad = cotangents((x,))[0].to(out.dtype)
        return (out.detach(), *torch.autograd.grad(out, leaves, grad))

    actual = run(ops.layer_norm, x, weight, bias)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float32, torch.float32]
    exact = run(plain.layer_norm, x.double(), weight.double(), bias.double())
    same_dtype = run(plain.layer_norm, x, weight, bias)
    for index, triple in enumerate(zip(actual, same_dtype, exact, strict=True)):
        assert_as_accurate(*triple, factor=BACKWARD_FACTOR if index else FORWARD_FACTOR)


@pytest.mark.parametrize("mean", [100.0, -1e4])
def test_a_large_mean_does_not_cost_more_accuracy_than_torch_loses(mean: float) -> None:
    x = Make().normal(64, 768, mean=mean)
    exact = plain.layer_norm(x.double(), eps=1e-6)
    actual, same = ops.layer_norm(x, eps=1e-6), plain.layer_norm(x, eps=1e-6)
    # the row's sum is rounded relative to the mean, the more often the narrower the vectors
    assert_as_accurate(actual, same, exact, factor=FORWARD_FACTOR, magnitude=abs(mean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW], ids=str)
@pytest.mark.parametrize("channels", [1, 7, 64, 193])
def test_a_constant_row_gives_the_bias(channels: int, dtype: torch.dtype) -> None:
    value = 1.1
    x = torch.full((3, channels), value, dtype=dtype, requires_grad=True)
    weight, bias = torch.ones(channels, dtype=dtype), Make(dtype).normal(channels)
    out = ops.layer_norm(x, weight, bias, 1e-5)
    # the mean may be off by roundings of the accumulator, more of them with narrow vectors, which 1 / sqrt(eps) = 316
    # enlarges
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    leftover = 16 * torch.finfo(accumulator).eps * value * 1e-5**-0.5 + torch.finfo(dtype).eps * 4
    torch.testing.assert_close(out, bias.expand_as(out), atol=leftover, rtol=0)
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_number_spoils_its_own_row_only(bad: float) -> None:
    x = Make().normal(50, 65)
    expected = ops.layer_norm(x)
    x[17, 3] = bad
    out = ops.layer_norm(x)
    assert out[17].isnan().all()
    out[17] = expected[17]
    assert_same_bits(out, expected)


@pytest.mark.parametrize("size", [1e-8, 1e4])
def test_small_and_large_numbers_in_float16(size: float) -> None:
    # squares of 65504 overflow float16 and those of 1e-8 vanish: statistics are in float32
    x = Make(torch.float16).normal(17, 64, scale=size)
    exact = plain.layer_norm(x.double(), eps=1e-12)
    out = ops.layer_norm(x, eps=1e-12)
    assert_as_accurate(out, exact.half(), exact, factor=FORWARD_FACTOR)


def test_zero_eps_is_allowed() -> None:
    x = Make().normal(5, 64)
    torch.testing.assert_close(ops.layer_norm(x, eps=0.0), plain.layer_norm(x, eps=0.0))
    torch.testing.assert_close(ops.layer_norm(x, eps=0), plain.layer_norm(x, eps=0.0))


def test_add_layer_norm_is_the_sum_and_its_layer_norm() -> None:
    x, residual = Make().normal(5, 17, 64), Make(seed=1).normal(5, 17, 64)
    summed, normalized = ops.add_layer_norm(x, residual)
    assert_same_bits(summed, x + residual)
    torch.testing.assert_close(normalized, ops.layer_norm(summed))


@pytest.mark.parametrize(
    ("x_dtype", "residual_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]
)
def test_add_layer_norm_promotes_to_the_wider_type(x_dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
    x = Make(x_dtype).normal(5, 64).requires_grad_()
    residual = Make(residual_dtype, seed=1).normal(5, 64).requires_grad_()
    summed, normalized = ops.add_layer_norm(x, residual)
    assert_same_bits(summed.detach(), x.detach().float() + residual.detach().float())
    assert normalized.dtype == torch.float32
    (summed.sum() + normalized.square().sum()).backward()
    assert (x.grad.dtype, residual.grad.dtype) == (x_dtype, residual_dtype)


def test_it_runs_under_vmap() -> None:
    x, weight, bias = torch.randn(3, 2, 16), torch.randn(16).requires_grad_(), torch.randn(16)
    mapped = torch.vmap(lambda row: ops.layer_norm(row, weight, bias))(x)
    torch.testing.assert_close(mapped, ops.layer_norm(x, weight, bias))
