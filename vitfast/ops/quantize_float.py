"""Rounding to a narrower floating-point format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitfast.formats import FloatFormat
from vitfast.ops import reference
from vitfast.ops.checks import check_tensor
from vitfast.ops.float_rounding import float_rounding
from vitfast.ops.library import has_kernel
from vitfast.ops.philox import philox_uint32
from vitfast.ops.rounding import Rounding
from vitfast.ops.seed import seed_tensor


def quantize_float(
    x: Tensor,
    format: FloatFormat,
    *,
    rounding: Rounding = "nearest_even",
    overflow: str | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Rounds every element to a value of ``format`` and keeps the tensor's type.

    Gradients pass straight through (Bengio et al., 2013). Where x's type cannot hold a value of the format (an fp16
    value in a bfloat16 tensor), that value is rounded once more, to x's type.

    Args:
        x: any shape, float32, bfloat16, float16 or float64.
        format: a ``vitfast.FloatFormat``.
        rounding: ``"nearest_even"``, ``"nearest_away"`` (ties away from zero), ``"toward_zero"`` or ``"stochastic"``
            (up with a probability equal to the fraction, resolved to 2**-31); with ``FloatFormat.qtorch(e, m)`` also
            ``"qtorch"``: the bits of QPyTorch 0.3.0 for float32.
        overflow: ``"inf"``, ``"nan"`` or ``"saturate"``; None takes the format's own.
        seed: for stochastic rounding, an integer or an int64 scalar tensor; the result is a pure function of it
            (Philox 4x32-10, Salmon et al., 2011). None draws one from torch's generator.

    Returns:
        A new tensor of x's shape and type.

    Raises:
        TypeError: x is no dense floating-point tensor, or ``format`` is no float format.
        ValueError: an unknown rounding or overflow, or one that the format cannot express.
    """
    check_tensor("x", x)
    raw_rounding = float_rounding(format, rounding, overflow)
    seeded = seed_tensor(seed, x) if rounding == "stochastic" else None
    if has_kernel("quantize_float", x.device.type):
        rounded: Tensor = torch.ops.vitfast.quantize_float.default(x, raw_rounding, seeded)
        return rounded
    rounded = _StraightThrough.apply(x, format, rounding, overflow or format.overflow, seeded)
    return rounded


class _StraightThrough(torch.autograd.Function):
    """The reference with the straight-through gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, format: FloatFormat, rounding: Rounding, overflow: str, seed: Tensor | None
    ) -> Tensor:
        random = None if seed is None else philox_uint32(seed, x.numel()).view(x.shape)
        return reference.quantize_float(x, format, rounding, overflow, random)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None, None, None, None


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad, None, None


if has_kernel("quantize_float", "meta"):
    torch.library.register_fake("vitfast::quantize_float")(_fake)
    torch.library.register_fake("vitfast::quantize_float_")(lambda *_: None)
    torch.library.register_autograd("vitfast::quantize_float", _backward)
