"""A GEMM with a narrow accumulator that is rounded after each chunk of products.

Shapes: K the summed dimension, N columns of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitfast.formats import FloatFormat
from vitfast.ops import reference
from vitfast.ops.arguments import check_choice, check_like, check_rows, check_tensor
from vitfast.ops.autocast import autocast_off
from vitfast.ops.library import has_kernel, kernel_state
from vitfast.ops.quantize_float import quantize_float
from vitfast.ops.registration import gemm_flops, register
from vitfast.ops.rounding import Rounding, StraightThrough, float_rounding

Unit = Literal["multiply_add", "tensor_core"]

_STEP = 16  # k of a tensor core instruction
# the accumulators supported with tensor cores, as encoded by float_rounding
_FLOAT16, _FLOAT32 = [5, 10, 0x477FE000, 1, 1, 1, 0, 0], [8, 23, 0x7F7FFFFF, 1, 1, 1, 0, 0]


def matmul_accumulate(
    x: Tensor,
    w: Tensor,
    accumulator: FloatFormat,
    chunk: int | None = None,
    *,
    rounding: Rounding = "nearest_even",
    operands: FloatFormat | None = None,
    unit: Unit = "multiply_add",
) -> Tensor:
    """Computes ``x wᵀ`` with a narrow accumulator, bit-exact with a sequential loop.

    For each result, in ascending k: the products of a chunk are summed by fused multiply-adds in float32, from 0; then
    ``accumulator = round(accumulator + sum)``, where the addition is in float32. This does not model tensor cores,
    whose summation order and internal widths differ.

    ``unit="tensor_core"`` sums a chunk in float16 on the tensor cores of a CUDA device: x and w are rounded to float16,
    to the nearest even, and so is the sum after every 8 or 16 products, depending on the GPU
    (docs/internals/cuda_gemm.md, "Tensor cores with fp16 accumulation"). After each chunk the rule above applies. The
    bits are specific to the GPU.

    The gradient is that of the exact GEMM, in float32; it passes straight through roundings. Inputs keep their dtype
    under autocast.

    Args:
        x: ``[..., K]``, float32, bfloat16, float16 or float64; computed in float32.
        w: ``[N, K]`` in x's dtype.
        accumulator: the format of the accumulator. With tensor cores ``FloatFormat.ieee(8, 23)``, float32, to which
            sums are promoted, or ``FloatFormat.fp16()``.
        chunk: number of products summed before the accumulator is rounded; None for all K. With tensor cores a
            multiple of 16.
        rounding: of the accumulator, not ``"stochastic"``; with tensor cores ``"nearest_even"``.
        operands: a format to which x and w are rounded first, to the nearest even; None: no rounding.
        unit: unit that sums a chunk: ``"multiply_add"`` or ``"tensor_core"``.

    Returns:
        ``[..., N]`` in x's dtype.

    Raises:
        TypeError: an argument is no dense floating-point tensor or no format, or the dtypes differ.
        ValueError: shapes or devices do not match, ``chunk`` is not positive, ``rounding`` or ``unit`` is unknown, or
            ``unit="tensor_core"`` does not support the other arguments.
        RuntimeError: ``unit="tensor_core"``, but its kernel is not active.
    """
    check_rows("x", x, "[..., K]")
    check_tensor("w", w, ndim=2, shape="[N, K]")
    check_like("w", w, "x", x, (w.shape[0], x.shape[-1]), "[N, K] with x's last dimension")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
        raise TypeError(f"chunk must be an integer or None, got {type(chunk).__name__}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be positive, or None for all products, got {chunk}")
    if rounding == "stochastic":
        raise ValueError("rounding of an accumulator must not be 'stochastic': the result would depend on its shape")
    if not isinstance(accumulator, FloatFormat):
        raise TypeError(f"accumulator must be a vitfast.FloatFormat, got {type(accumulator).__name__}")
    raw_rounding = float_rounding(accumulator, rounding)
    check_choice("unit", unit, get_args(Unit))
    if unit == "tensor_core":
        _check_tensor_core(x, accumulator, chunk, rounding)
    if operands is not None:
        x, w = quantize_float(x, operands), quantize_float(w, operands)
    if unit == "tensor_core":
        summed: Tensor = _Fp16Accumulation.apply(x, w, float_rounding(accumulator) == _FLOAT16, chunk or 0)
        return summed.to(x.dtype)
    x32, w32 = x.to(torch.float32), w.to(torch.float32)
    if has_kernel("matmul_accumulate", x.device.type):
        out: Tensor = torch.ops.vitfast.matmul_accumulate.default(x32, w32, raw_rounding, chunk or 0)
    else:
        with autocast_off(x):
            exact = F.linear(x32, w32)
        with torch.no_grad():
            rounded = reference.matmul_accumulate(x32, w32, accumulator, chunk, rounding)
        out = StraightThrough.apply(exact, rounded)
    return out.to(x.dtype)


def _check_tensor_core(x: Tensor, accumulator: FloatFormat, chunk: int | None, rounding: str) -> None:
    """Rejects arguments that tensor cores do not support, and devices without them."""
    if float_rounding(accumulator) not in (_FLOAT16, _FLOAT32):
        raise ValueError(
            "accumulator with unit='tensor_core' must be FloatFormat.ieee(8, 23), float32, or FloatFormat.fp16(), got "
            f"{accumulator}"
        )
    if rounding != "nearest_even":
        raise ValueError(f"rounding with unit='tensor_core' must be 'nearest_even', got {rounding!r}")
    if chunk is not None and chunk % _STEP:
        raise ValueError(f"chunk with unit='tensor_core' must be a multiple of {_STEP}, or None, got {chunk}")
    if x.device.type != "cuda":
        raise ValueError(
            f"unit='tensor_core' needs x and w on a CUDA device, got {x.device}; unit='multiply_add' runs everywhere"
        )
    if not has_kernel("matmul_fp16_accumulation", "cuda"):
        state = kernel_state("matmul_fp16_accumulation", "cuda").removeprefix("torch: ")
        raise RuntimeError(f"unit='tensor_core': its kernel is not active, and no fallback is bit-exact: {state}")


def _rows(x: Tensor) -> Tensor:
    return (x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)).contiguous()


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the exact GEMM; only the required ones are computed."""
    x, w = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
    grad_x = torch.mm(_rows(grad), w.contiguous()).view(x.shape) if ctx.needs_input_grad[0] else None
    grad_w = torch.mm(_rows(grad).t(), _rows(x)) if ctx.needs_input_grad[1] else None
    return grad_x, grad_w


class _Fp16Accumulation(torch.autograd.Function):
    """The tensor cores' GEMM with the gradient of the exact GEMM, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, rounds: bool, chunk: int) -> Tensor:
        x16, w16 = x.to(torch.float16), w.to(torch.float16)
        ctx.save_for_backward(x16, w16)
        missing = -x.shape[-1] % 8  # rows are read 16 bytes at a time
        if missing:
            x16, w16 = F.pad(x16, (0, missing)), F.pad(w16, (0, missing))
        out: Tensor = torch.ops.vitfast.matmul_fp16_accumulation.default(x16, w16, rounds, chunk)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_gradients(ctx, grad), None, None


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_gradients(ctx, grad), None, None


def _fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


def _flops(x: Sequence[int], weight: Sequence[int]) -> int:
    return gemm_flops(x, weight[0])


register("matmul_accumulate", _fake, backward=_backward, setup_context=_setup_context, flops=_flops)
register("matmul_fp16_accumulation", _fake, flops=_flops)
