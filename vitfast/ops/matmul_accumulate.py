"""A matrix product whose accumulator is really rounded.

Shapes: K the summed dimension, N columns of the result.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitfast.formats import FloatFormat
from vitfast.ops import reference
from vitfast.ops.checks import check_like, check_shape, check_tensor
from vitfast.ops.float_rounding import float_rounding
from vitfast.ops.library import has_kernel, kernel_state
from vitfast.ops.product_flops import product_flops
from vitfast.ops.quantize_float import quantize_float
from vitfast.ops.rounding import Rounding

Unit = Literal["multiply_add", "tensor_core"]

_STEP = 16  # of k, in a product of a tensor core
# the accumulators beside tensor cores, fp16 and float32, as float_rounding writes them
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
    """Computes ``x wᵀ`` as a unit does whose accumulator is narrow: its bits are those of a loop.

    For each result, k ascending: within a chunk the products are summed by fused multiply-adds in float32, from 0;
    after it ``accumulator = round(accumulator + sum)``, where the addition is in float32. This is no model of tensor
    cores, whose order of sums and inner widths are their own.

    ``unit="tensor_core"``, on CUDA, has the tensor cores of the GPU sum a chunk, in float16: x and w are rounded to
    float16, to the nearest even, and so is the sum after every 8 or 16 products, as that GPU does it (docs/kernels.md,
    "Tensor cores with float16 sums"). After the chunk the rule above holds. Bits are the GPU's, and no other device's.

    The gradient is that of the ordinary product, in float32; roundings pass it straight through. Inputs keep their type
    under autocast.

    Args:
        x: ``[..., K]``, float32, bfloat16, float16 or float64; computed in float32.
        w: ``[N, K]`` in x's type.
        accumulator: the format of the accumulator. With tensor cores ``FloatFormat.ieee(8, 23)``, float32, to which
            sums are promoted, or ``FloatFormat.fp16()``.
        chunk: how many products are summed before the accumulator is rounded; None for all K. With tensor cores a
            multiple of 16.
        rounding: of the accumulator, not ``"stochastic"``; with tensor cores ``"nearest_even"``.
        operands: a format that x and w are rounded to first, to the nearest even; None leaves them as they are.
        unit: what sums a chunk: ``"multiply_add"`` or ``"tensor_core"``.

    Returns:
        ``[..., N]`` in x's type.

    Raises:
        TypeError: an argument is no dense floating-point tensor or no format, or the types differ.
        ValueError: shapes or devices do not go together, ``chunk`` is not positive, ``rounding`` or ``unit`` is
            unknown, or tensor cores do not compute this.
        RuntimeError: ``unit="tensor_core"`` where its kernel is not in use.
    """
    check_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension [..., K], got a scalar")
    check_tensor("w", w, ndim=2, shape="[N, K]")
    check_like("w", w, "x", x)
    check_shape("w", w, (w.shape[0], x.shape[-1]), "[N, K] with x's last dimension")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
        raise TypeError(f"chunk must be an integer or None, got {type(chunk).__name__}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be positive, or None for all products, got {chunk}")
    if rounding == "stochastic":
        raise ValueError("rounding of an accumulator must not be 'stochastic': the result would depend on its shape")
    if not hasattr(accumulator, "exponent_bits"):
        raise TypeError(f"accumulator must be a vitfast.FloatFormat, got {type(accumulator).__name__}")
    raw_rounding = float_rounding(accumulator, rounding)
    if unit not in ("multiply_add", "tensor_core"):
        raise ValueError(f"unit must be 'multiply_add' or 'tensor_core', got {unit!r}")
    if unit == "tensor_core":
        _check_tensor_core(x, accumulator, chunk, rounding)
    if operands is not None:
        x, w = quantize_float(x, operands), quantize_float(w, operands)
    if unit == "tensor_core":
        summed: Tensor = _HalfSums.apply(x, w, float_rounding(accumulator) == _FLOAT16, chunk or 0)
        return summed.to(x.dtype)
    x32, w32 = x.to(torch.float32), w.to(torch.float32)
    if has_kernel("matmul_accumulate", x.device.type):
        out: Tensor = torch.ops.vitfast.matmul_accumulate.default(x32, w32, raw_rounding, chunk or 0)
    else:
        out = _StraightThrough.apply(x32, w32, accumulator, chunk, rounding)
    return out.to(x.dtype)


def _check_tensor_core(x: Tensor, accumulator: FloatFormat, chunk: int | None, rounding: str) -> None:
    """Refuses what tensor cores do not compute, and places where they are not."""
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
            f"unit='tensor_core' needs x and w on a CUDA device, got {x.device}; unit='multiply_add' runs on every one"
        )
    if not has_kernel("matmul_half_sums", "cuda"):
        state = kernel_state("matmul_half_sums", "cuda").removeprefix("torch: ")
        raise RuntimeError(f"unit='tensor_core': its kernel is not in use, and nothing else has its bits: {state}")


def _rows(x: Tensor) -> Tensor:
    return (x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)).contiguous()


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Those of the ordinary product; only what is needed is computed."""
    x, w = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
    grad_x = torch.mm(_rows(grad), w.contiguous()).view(x.shape) if ctx.needs_input_grad[0] else None
    grad_w = torch.mm(_rows(grad).t(), _rows(x)) if ctx.needs_input_grad[1] else None
    return grad_x, grad_w


class _StraightThrough(torch.autograd.Function):
    """The reference with the gradient of the ordinary product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, accumulator: FloatFormat, chunk: int | None, rounding: str) -> Tensor:
        ctx.save_for_backward(x, w)
        return reference.matmul_accumulate(x, w, accumulator, chunk, rounding)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_gradients(ctx, grad), None, None, None


class _HalfSums(torch.autograd.Function):
    """The tensor cores' product with the gradient of the ordinary one, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, rounds: bool, chunk: int) -> Tensor:
        x16, w16 = x.to(torch.float16), w.to(torch.float16)
        ctx.save_for_backward(x16, w16)
        missing = -x.shape[-1] % 8  # rows are read 16 bytes at a time
        if missing:
            x16, w16 = F.pad(x16, (0, missing)), F.pad(w16, (0, missing))
        out: Tensor = torch.ops.vitfast.matmul_half_sums.default(x16, w16, rounds, chunk)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_gradients(ctx, grad), None, None


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_gradients(ctx, grad), None, None


def _fake(x: Tensor, w: Tensor, accumulator: list[int], chunk: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _fake_half_sums(x: Tensor, w: Tensor, rounds: bool, chunk: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)


def _flops(x: Any, w: Any, *_: Any, **__: Any) -> int:
    return product_flops(x, w[0])


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    torch.library.register_fake("vitfast::matmul_accumulate")(_fake)
    torch.library.register_autograd("vitfast::matmul_accumulate", _backward, setup_context=_setup_context)
    torch.library.register_fake("vitfast::matmul_half_sums")(_fake_half_sums)
    register_flop_formula((torch.ops.vitfast.matmul_accumulate, torch.ops.vitfast.matmul_half_sums))(_flops)


if has_kernel("matmul_accumulate", "meta"):
    _register()
