"""The names of the rounding operators' options, and the codes under which the raw operators take them."""

from __future__ import annotations

from typing import Literal

Rounding = Literal["nearest_even", "nearest_away", "toward_zero", "stochastic", "qtorch"]
FixedOverflow = Literal["saturate", "wrap", "unbounded"]

# csrc/common/float_format.h and fixed_format.h have the same codes
ROUNDING_CODES: dict[str, int] = {"nearest_even": 0, "nearest_away": 1, "toward_zero": 2, "stochastic": 3}
OVERFLOW_CODES: dict[str, int] = {"inf": 0, "nan": 1, "saturate": 2}

FIXED_OVERFLOW_CODES: dict[str, int] = {"saturate": 0, "wrap": 1, "unbounded": 2}
QTORCH_NEAREST = 4  # what QPyTorch 0.3.0's code for the CPU computes, with all its roundings
