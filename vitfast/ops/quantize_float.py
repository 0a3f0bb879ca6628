"""Rounding to a narrower floating-point format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.checks import check_tensor
from vitfast.ops.library import has_kernel
from vitfast.ops.philox import philox_uint32
from vitfast.ops.rounding import OVERFLOW_CODES, ROUNDING_CODES, Rounding

if TYPE_CHECKING:
    from vitfast.quantization.formats import FloatFormat


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
            (up with a probability equal to the fraction, resolved to 2**-31).
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
    arguments = _raw_arguments(format, rounding, overflow)
    seed_tensor = _seed_tensor(seed, x) if rounding == "stochastic" else None
    if has_kernel("quantize_float", x.device.type):
        rounded: Tensor = torch.ops.vitfast.quantize_float.default(x, *arguments, seed_tensor)
        return rounded
    rounded = _StraightThrough.apply(x, format, rounding, overflow or format.overflow, seed_tensor)
    return rounded


def _raw_arguments(format: FloatFormat, rounding: str, overflow: str | None) -> tuple[Any, ...]:
    """Checks the options and turns them into what the raw operator takes after x."""
    if rounding not in ROUNDING_CODES:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDING_CODES)}, got {rounding!r}")
    if not hasattr(format, "exponent_bits"):
        raise TypeError(f"format must be a vitfast.FloatFormat such as FloatFormat.fp16(), got {type(format).__name__}")
    overflow = format.overflow if overflow is None else overflow
    if overflow not in OVERFLOW_CODES:
        raise ValueError(f"overflow must be one of {', '.join(OVERFLOW_CODES)}, got {overflow!r}")
    if (overflow == "inf" and not format.has_inf) or (overflow == "nan" and not format.has_nan):
        raise ValueError(f"overflow={overflow!r} is no value of {format}; use overflow='saturate'")
    return (
        format.exponent_bits,
        format.mantissa_bits,
        format.max_value,
        format.has_inf,
        format.has_nan,
        format.signed_zero,
        OVERFLOW_CODES[overflow],
        ROUNDING_CODES[rounding],
    )


def _seed_tensor(seed: int | Tensor | None, x: Tensor) -> Tensor:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(f"seed must be one int64, got {seed.dtype} of shape {list(seed.shape)}")
        return seed.to(x.device)
    if seed is None:
        return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=x.device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, an int64 tensor or None, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=x.device)


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
    return grad, *(None,) * 9


if has_kernel("quantize_float", "meta"):
    torch.library.register_fake("vitfast::quantize_float")(_fake)
    torch.library.register_fake("vitfast::quantize_float_")(lambda *_: None)
    torch.library.register_autograd("vitfast::quantize_float", _backward)
