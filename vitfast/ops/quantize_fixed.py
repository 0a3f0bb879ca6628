"""Rounding to fixed-point numbers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.arguments import check_choice, check_tensor
from vitfast.ops.library import has_kernel
from vitfast.ops.registration import empty_like, register, register_in_place
from vitfast.ops.rounding import (
    FIXED_OVERFLOW_CODES,
    QTORCH_NEAREST,
    ROUNDING_CODES,
    FixedOverflow,
    Rounding,
    StraightThrough,
    random_like,
    seed_tensor,
    straight_through,
)


def quantize_fixed(
    x: Tensor,
    word_length: int,
    fraction_length: int,
    *,
    rounding: Rounding = "nearest_even",
    overflow: FixedOverflow = "saturate",
    symmetric: bool = False,
    numerics: Literal["ieee", "qtorch"] = "ieee",
    clip_gradients: bool = False,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Rounds every element to a fixed-point number and keeps the tensor's type.

    The numbers are ``k * 2**-fraction_length`` for integers k, ``-2**(word_length-1) <= k < 2**(word_length-1)``. There
    is no -0. A number that x's dtype cannot represent is rounded again, to x's dtype.

    Args:
        x: any shape, float32, bfloat16, float16 or float64.
        word_length: bits of a number including its sign, 2 to 24.
        fraction_length: bits after the binary point, -64 to 64; more than ``word_length`` is allowed.
        rounding: as for ``quantize_float``.
        overflow: result for a number out of range: ``"saturate"``: the nearest limit; ``"wrap"``: k modulo
            ``2**word_length``, as in two's complement arithmetic (NaN for an infinity); ``"unbounded"``: any k.
            QPyTorch's ``clamp=True`` and ``clamp=False`` are ``"saturate"`` and ``"unbounded"``.
        symmetric: whether the smallest k is ``1 - 2**(word_length-1)``; requires ``overflow="saturate"``.
        numerics: ``"qtorch"`` is bit-exact with QPyTorch 0.3.0's ``fixed_point_quantize(rounding="nearest")`` on the
            CPU, which adds 0.5 in float32 first: values just above half a step round to zero, odd k from ``2**23`` on
            round up, and -0 exists. On CUDA, QPyTorch computes ``rounding="nearest_away"``, except for signs of zeros.
        clip_gradients: whether the gradient of elements that saturate is zero; otherwise all gradients pass straight
            through (Bengio et al., 2013).
        seed: as for ``quantize_float``.

    Returns:
        A new tensor of x's shape and type; NaN stays NaN.

    Raises:
        TypeError: x is no dense floating-point tensor, or a length is no integer.
        ValueError: a length is out of range, or an option is unknown or contradicts another one.
    """
    check_tensor("x", x)
    check_fixed_lengths(word_length, fraction_length)
    _check_options(rounding, overflow, symmetric, numerics, clip_gradients)
    seeded = seed_tensor(seed, x) if rounding == "stochastic" else None
    rule: Rounding = "qtorch" if numerics == "qtorch" else rounding
    options = (word_length, fraction_length, rule, overflow, symmetric, seeded)
    if clip_gradients:
        constant = x.detach()
        unbounded = _round(constant, *options[:3], "unbounded", *options[4:])
        within = (unbounded == _round(constant, *options)) | constant.isnan()
        x = torch.where(within, x, constant)
    return _round(x, *options)


def check_fixed_lengths(word_length: Any, fraction_length: Any) -> None:
    """Raises TypeError or ValueError unless float32 holds every number of these lengths exactly."""
    for name, length in (("word_length", word_length), ("fraction_length", fraction_length)):
        if isinstance(length, bool) or not isinstance(length, int):
            raise TypeError(f"{name} must be an integer, got {type(length).__name__}")
    if not 2 <= word_length <= 24:
        raise ValueError(f"word_length must be 2 to 24 bits, the sign among them; got {word_length}")
    if not -64 <= fraction_length <= 64:
        raise ValueError(f"fraction_length must be -64 to 64 bits; got {fraction_length}")


def _check_options(rounding: str, overflow: str, symmetric: bool, numerics: str, clip_gradients: bool) -> None:
    check_choice("rounding", rounding, tuple(ROUNDING_CODES))
    check_choice("overflow", overflow, tuple(FIXED_OVERFLOW_CODES))
    check_choice("numerics", numerics, ("ieee", "qtorch"))
    if numerics == "qtorch" and rounding != "nearest_even":
        raise ValueError(f"numerics='qtorch' requires rounding='nearest_even', got {rounding!r}")
    if numerics == "qtorch" and overflow == "wrap":
        raise ValueError("QPyTorch has no overflow='wrap'; use numerics='ieee'")
    if overflow != "saturate" and symmetric:
        raise ValueError(f"symmetric=True requires overflow='saturate', got {overflow!r}")
    if overflow != "saturate" and clip_gradients:
        raise ValueError(f"clip_gradients=True requires overflow='saturate', got {overflow!r}")


def _round(
    x: Tensor,
    word_length: int,
    fraction_length: int,
    rounding: Rounding,
    overflow: FixedOverflow,
    symmetric: bool,
    seed: Tensor | None,
) -> Tensor:
    if has_kernel("quantize_fixed", x.device.type):
        code = ROUNDING_CODES.get(rounding, QTORCH_NEAREST)
        raw_rounding = [word_length, fraction_length, int(symmetric), FIXED_OVERFLOW_CODES[overflow], code]
        rounded: Tensor = torch.ops.vitfast.quantize_fixed.default(x, raw_rounding, seed)
        return rounded
    with torch.no_grad():
        random = random_like(x, seed)
        rounded = reference.quantize_fixed(x, word_length, fraction_length, rounding, overflow, symmetric, random)
    rounded = StraightThrough.apply(x, rounded)
    return rounded


register("quantize_fixed", empty_like, backward=straight_through)
register_in_place("quantize_fixed_")
