"""What the rounding operators need to know of a number format (``quantization/formats.py`` defines the formats)."""

from __future__ import annotations

from typing import Literal, Protocol

Rounding = Literal["nearest_even", "nearest_away", "toward_zero", "stochastic"]

# the codes that the raw operators take; csrc/common/float_format.h has the same ones
ROUNDING_CODES: dict[str, int] = {"nearest_even": 0, "nearest_away": 1, "toward_zero": 2, "stochastic": 3}
OVERFLOW_CODES: dict[str, int] = {"inf": 0, "nan": 1, "saturate": 2}


class NumberFormat(Protocol):
    """A float format as ``quantize_float`` sees it; see ``vitfast.FloatFormat`` for the meaning of the fields."""

    @property
    def exponent_bits(self) -> int: ...
    @property
    def mantissa_bits(self) -> int: ...
    @property
    def max_value(self) -> float: ...
    @property
    def has_inf(self) -> bool: ...
    @property
    def has_nan(self) -> bool: ...
    @property
    def signed_zero(self) -> bool: ...
    @property
    def overflow(self) -> str: ...
