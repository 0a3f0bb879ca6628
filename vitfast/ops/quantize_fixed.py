"""Rounding to fixed-point numbers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.checks import check_tensor
from vitfast.ops.library import has_kernel
from vitfast.ops.philox import philox_uint32
from vitfast.ops.rounding import FIXED_OVERFLOW_CODES, QTORCH_NEAREST, ROUNDING_CODES, FixedOverflow, Rounding
from vitfast.ops.seed import seed_tensor

NUMERICS = ("ieee", "qtorch")


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

    The numbers are ``k * 2**-fraction_length`` for whole k, ``-2**(word_length-1) <= k < 2**(word_length-1)``. There is
    no -0. Where x's type cannot hold such a number, it is rounded once more, to x's type.

    Args:
        x: any shape, float32, bfloat16, float16 or float64.
        word_length: bits of a number, with its sign, 2 to 24.
        fraction_length: bits after the binary point, -64 to 64; more than ``word_length`` is allowed.
        rounding: as for ``quantize_float``.
        overflow: what a number beyond the smallest or largest one becomes: ``"saturate"``: that one; ``"wrap"``: k
            modulo ``2**word_length``, as two's complement arithmetic has it (NaN for an infinity); ``"unbounded"``: any
            k. (QPyTorch's ``clamp=True`` and ``clamp=False`` are the first and the last.)
        symmetric: whether the smallest k is ``1 - 2**(word_length-1)``; only where numbers saturate.
        numerics: ``"qtorch"``: the bits of QPyTorch 0.3.0's ``fixed_point_quantize(rounding="nearest")`` on the CPU,
            which adds 0.5 in float32 first: just above half a step goes to zero, odd k from ``2**23`` on go up, and
            there is a -0. On CUDA QPyTorch gives ``rounding="nearest_away"``, but for zeros' signs.
        clip_gradients: whether elements that saturate get no gradient; otherwise every gradient passes straight through
            (Bengio et al., 2013).
        seed: as for ``quantize_float``.

    Returns:
        A new tensor of x's shape and type; NaN stays NaN.

    Raises:
        TypeError: x is no dense floating-point tensor, or a length is no integer.
        ValueError: a length is out of range, or an option is unknown or does not go with another one.
    """
    check_tensor("x", x)
    check_fixed_lengths(word_length, fraction_length)
    _check_options(rounding, overflow, symmetric, numerics, clip_gradients)
    seeded = seed_tensor(seed, x) if rounding == "stochastic" else None
    options = (word_length, fraction_length, rounding, overflow, symmetric, numerics == "qtorch", seeded)
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
    for name, value, allowed in (
        ("rounding", rounding, ROUNDING_CODES),
        ("overflow", overflow, FIXED_OVERFLOW_CODES),
        ("numerics", numerics, NUMERICS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if numerics == "qtorch" and rounding != "nearest_even":
        raise ValueError(f"numerics='qtorch' goes with rounding='nearest_even' only, got {rounding!r}")
    if numerics == "qtorch" and overflow == "wrap":
        raise ValueError("overflow='wrap' is unknown to QPyTorch: leave numerics='ieee'")
    if overflow != "saturate" and symmetric:
        raise ValueError(f"symmetric=True needs overflow='saturate', got {overflow!r}")
    if overflow != "saturate" and clip_gradients:
        raise ValueError(f"clip_gradients=True needs overflow='saturate', got {overflow!r}")


def _round(
    x: Tensor,
    word_length: int,
    fraction_length: int,
    rounding: Rounding,
    overflow: FixedOverflow,
    symmetric: bool,
    as_qtorch: bool,
    seed: Tensor | None,
) -> Tensor:
    if has_kernel("quantize_fixed", x.device.type):
        code = QTORCH_NEAREST if as_qtorch else ROUNDING_CODES[rounding]
        raw_rounding = [word_length, fraction_length, int(symmetric), FIXED_OVERFLOW_CODES[overflow], code]
        rounded: Tensor = torch.ops.vitfast.quantize_fixed.default(x, raw_rounding, seed)
        return rounded
    rounded = _StraightThrough.apply(x, word_length, fraction_length, rounding, overflow, symmetric, as_qtorch, seed)
    return rounded


class _StraightThrough(torch.autograd.Function):
    """The reference with the straight-through gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        word_length: int,
        fraction_length: int,
        rounding: Rounding,
        overflow: FixedOverflow,
        symmetric: bool,
        as_qtorch: bool,
        seed: Tensor | None,
    ) -> Tensor:
        random = None if seed is None else philox_uint32(seed, x.numel()).view(x.shape)
        return reference.quantize_fixed(
            x, word_length, fraction_length, rounding, overflow, symmetric, as_qtorch, random
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, *(None,) * 7


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad, None, None


if has_kernel("quantize_fixed", "meta"):
    torch.library.register_fake("vitfast::quantize_fixed")(_fake)
    torch.library.register_fake("vitfast::quantize_fixed_")(lambda *_: None)
    torch.library.register_autograd("vitfast::quantize_fixed", _backward)
