"""Rounding to a narrower floating-point format."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfast.formats import FloatFormat
from vitfast.ops import reference
from vitfast.ops.arguments import check_tensor
from vitfast.ops.library import has_kernel
from vitfast.ops.registration import empty_like, register, register_in_place
from vitfast.ops.rounding import (
    Rounding,
    StraightThrough,
    float_rounding,
    random_like,
    seed_tensor,
    straight_through,
)


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
        overflow: ``"inf"``, ``"nan"`` or ``"saturate"``; None takes the format's.
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
    with torch.no_grad():
        rounded = reference.quantize_float(x, format, rounding, overflow or format.overflow, random_like(x, seeded))
    rounded = StraightThrough.apply(x, rounded)
    return rounded


register("quantize_float", empty_like, backward=straight_through)
register_in_place("quantize_float_")
