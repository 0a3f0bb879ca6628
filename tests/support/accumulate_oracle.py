"""The product with a rounded accumulator as its definition's loop, by exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from support.float_oracle import round_float
from vitfast.formats import FloatFormat


def to_float32(exact: Fraction) -> float:
    """The nearest float32, ties to even; too large ones are infinite."""
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    quantum = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(magnitude / quantum) * quantum
    value = float(rounded) if rounded < 2**128 else math.inf
    return -value if exact < 0 else value


def fused_multiply_add(a: float, b: float, c: float) -> float:
    """A * b + c in float32, rounded once."""
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    return to_float32(exact) if exact else a * b + c  # the sign of a zero is IEEE's


def accumulate(
    x: list[float], w: list[float], format: FloatFormat, chunk: int | None, rounding: str = "nearest_even"
) -> float:
    """One result: the definition, word for word."""
    accumulator = 0.0
    for first in range(0, len(x), chunk or max(len(x), 1)):
        chunk_sum = 0.0
        for a, b in list(zip(x, w, strict=True))[first : first + (chunk or len(x))]:
            chunk_sum = fused_multiply_add(a, b, chunk_sum)
        accumulator = round_float(fused_multiply_add(accumulator, 1.0, chunk_sum), format, rounding)
    return accumulator


def matmul_accumulate(
    x: Tensor, w: Tensor, format: FloatFormat, chunk: int | None, rounding: str = "nearest_even"
) -> Tensor:
    """Computes every result: x [..., K], w [N, K] -> [..., N] in float32."""
    rows = x.float().reshape(-1, x.shape[-1]) if x.numel() else x.float().reshape(math.prod(x.shape[:-1]), x.shape[-1])
    results = [
        [accumulate(row, column, format, chunk, rounding) for column in w.float().tolist()] for row in rows.tolist()
    ]
    return torch.tensor(results, dtype=torch.float64).reshape(*x.shape[:-1], len(w)).float()
