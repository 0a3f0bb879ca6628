"""Rounding to a float format by exact rational arithmetic over the enumerated values of the format.

Slow and obvious on purpose: it shares no idea with the kernels. The non-negative values are listed by their codes
(exponent field, then mantissa field); a number is compared with its two neighbours in the list as Fractions.
"""

from __future__ import annotations

import bisect
import math
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from vitfast.formats import FloatFormat


def decode(code: int, format: FloatFormat) -> float:
    """The value of a non-negative code as if no code were kept for infinity or NaN; exact in a Python float."""
    exponent_field, mantissa_field = divmod(code, 2**format.mantissa_bits)
    bias = 2 ** (format.exponent_bits - 1) - 1
    if exponent_field == 0:
        return math.ldexp(mantissa_field, 1 - bias - format.mantissa_bits)
    return math.ldexp(2**format.mantissa_bits + mantissa_field, exponent_field - bias - format.mantissa_bits)


@cache
def finite_values(format: FloatFormat) -> list[float]:
    """The non-negative finite values, ascending: the value at index i has code i."""
    values = [0.0]
    while values[-1] < format.max_value:
        values.append(decode(len(values), format))
    assert values[-1] == format.max_value, "max_value is no value of the format"
    return values


def neighbours(magnitude: float, format: FloatFormat) -> tuple[int, float, float]:
    """The code of the largest value <= magnitude, that value, and the next one (were the format to go on)."""
    values = finite_values(format)
    code = bisect.bisect_right(values, magnitude) - 1
    if code < len(values) - 1:
        return code, values[code], values[code + 1]
    while decode(code + 1, format) <= magnitude:  # beyond the format: the next exponents
        code += 2**format.mantissa_bits if decode(code + 2**format.mantissa_bits, format) <= magnitude else 1
    return code, decode(code, format), decode(code + 1, format)


def fraction_to_upper(magnitude: float, format: FloatFormat) -> Fraction:
    """The position of the magnitude between its neighbours, 0 <= fraction < 1: the probability of rounding up."""
    _, lower, upper = neighbours(magnitude, format)
    return (Fraction(magnitude) - Fraction(lower)) / (Fraction(upper) - Fraction(lower))


def round_float(x: float, format: FloatFormat, rounding: str, overflow: str | None = None) -> float:
    """Rounds one number; ``rounding``: nearest_even, nearest_away, toward_zero, or away_from_zero (for neighbours)."""
    beyond = {"inf": math.inf, "nan": math.nan, "saturate": format.max_value}[overflow or format.overflow]
    if math.isnan(x):
        return math.nan if format.has_nan else format.max_value
    magnitude = abs(x)
    if math.isinf(x):
        rounded = math.inf if format.has_inf else beyond
    else:
        code, lower, upper = neighbours(magnitude, format)
        fraction = (Fraction(magnitude) - Fraction(lower)) / (Fraction(upper) - Fraction(lower))
        half = Fraction(1, 2)
        up = {
            "nearest_even": fraction > half or (fraction == half and code % 2 == 1),
            "nearest_away": fraction >= half,
            "toward_zero": False,
            "away_from_zero": fraction > 0,
        }[rounding]
        rounded = upper if up else lower
        if rounded > format.max_value:
            rounded = beyond
    signed = math.copysign(rounded, x)
    return 0.0 if signed == 0 and not format.signed_zero else signed


def round_tensor(x: Tensor, format: FloatFormat, rounding: str, overflow: str | None = None) -> Tensor:
    """Rounds every element; the result is rounded once more where x's type cannot hold it."""
    rounded = [round_float(value, format, rounding, overflow) for value in x.detach().reshape(-1).tolist()]
    return torch.tensor(rounded, dtype=torch.float64).reshape(x.shape).to(x.dtype)
