"""Rounding to fixed point by exact fractions: slow, simple and independent of the kernels."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor


def round_fixed(
    x: float,
    word_length: int,
    fraction_length: int,
    rounding: str = "nearest_even",
    overflow: str = "saturate",
    symmetric: bool = False,
) -> float:
    """Rounds one number; ``rounding`` is not stochastic."""
    half_range = 2 ** (word_length - 1)
    low, high = -half_range + int(symmetric), half_range - 1
    step = Fraction(2) ** -fraction_length
    if math.isnan(x) or (math.isinf(x) and overflow == "wrap"):
        return math.nan
    if math.isinf(x):
        return x if overflow == "unbounded" else float((high if x > 0 else low) * step)
    exact = Fraction(x) / step
    magnitude = abs(exact)
    whole = math.floor(magnitude)
    count = {
        "nearest_even": round(magnitude),
        "nearest_away": whole + (magnitude - whole >= Fraction(1, 2)),
        "toward_zero": whole,
    }[rounding]
    count = -count if exact < 0 else count
    if overflow == "saturate":
        count = min(max(count, low), high)
    elif overflow == "wrap":
        count = (count + half_range) % (2 * half_range) - half_range
    return float(count * step)


def round_tensor(x: Tensor, *lengths: int, **options: object) -> Tensor:
    """Rounds every element; the result is rounded once more where x's type cannot hold it."""
    rounded = [round_fixed(value, *lengths, **options) for value in x.detach().reshape(-1).tolist()]  # type: ignore[arg-type]
    return torch.tensor(rounded, dtype=torch.float64).reshape(x.shape).to(x.dtype)
