"""Floating-point formats narrower than float32: the one place that defines them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Overflow = Literal["inf", "nan", "saturate"]

_OVERFLOWS = ("inf", "nan", "saturate")


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format with one sign bit, subnormals and the exponent bias ``2**(exponent_bits-1) - 1``.

    Use a preset (``FloatFormat.fp16()``, ``FloatFormat.fp8_e4m3fn()`` …) or one of the two families
    ``FloatFormat.ieee(e, m)`` and ``FloatFormat.qtorch(e, m)``.

    Args:
        exponent_bits: 2 to 8.
        mantissa_bits: explicitly stored bits, 0 to 23. With 0, a tie goes to the even exponent code.
        max_value: the largest finite value.
        has_inf: infinities are values of the format; otherwise an infinity overflows.
        has_nan: NaN is a value of the format; otherwise NaN becomes ``+max_value``.
        signed_zero: -0 is a value of the format; otherwise it becomes +0.
        overflow: what a finite value that rounds beyond ``max_value`` becomes: ``"inf"``, ``"nan"`` or
            ``"saturate"`` (``±max_value``).

    Raises:
        ValueError: a field is out of range or contradicts another one.
    """

    exponent_bits: int
    mantissa_bits: int
    max_value: float
    has_inf: bool = True
    has_nan: bool = True
    signed_zero: bool = True
    overflow: Overflow = "inf"

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise ValueError(f"exponent_bits must be 2 to 8, got {self.exponent_bits}")
        if not 0 <= self.mantissa_bits <= 23:
            raise ValueError(f"mantissa_bits must be 0 to 23, got {self.mantissa_bits}")
        if self.overflow not in _OVERFLOWS:
            raise ValueError(f"overflow must be one of {', '.join(_OVERFLOWS)}, got {self.overflow!r}")
        if self.overflow == "inf" and not self.has_inf:
            raise ValueError('overflow="inf" needs has_inf=True; use overflow="saturate"')
        if self.overflow == "nan" and not self.has_nan:
            raise ValueError('overflow="nan" needs has_nan=True; use overflow="saturate"')
        if not (math.isfinite(self.max_value) and self.max_value >= self.min_normal):
            raise ValueError(
                f"max_value must be finite and at least the smallest normal value, {self.min_normal}; "
                f"got {self.max_value}"
            )
        # max_value must itself be a value of the format, or rounding to it would not be idempotent
        significand = math.frexp(self.max_value)[0] * 2 ** (self.mantissa_bits + 1)
        if significand != int(significand):
            raise ValueError(f"max_value {self.max_value} needs more than {self.mantissa_bits} mantissa bits")

    @property
    def min_normal(self) -> float:
        """The smallest normal value, ``2**(1 - bias)``."""
        return math.ldexp(1.0, 2 - 2 ** (self.exponent_bits - 1))

    @property
    def min_subnormal(self) -> float:
        """The smallest positive value: the spacing of the values below ``min_normal``."""
        return self.min_normal * 2.0**-self.mantissa_bits

    @property
    def max_bits(self) -> int:
        """The bits of ``max_value`` as a float32."""
        fraction, exponent = math.frexp(self.max_value)
        return ((exponent + 125) << 23) + int(fraction * 2**24)

    @property
    def fits_fp16(self) -> bool:
        """Whether IEEE half precision represents every value of the format."""
        half = FloatFormat.fp16()
        return (
            self.mantissa_bits <= half.mantissa_bits
            and self.max_value <= half.max_value
            and self.min_subnormal >= half.min_subnormal
        )

    @property
    def is_qtorch(self) -> bool:
        """Whether this is ``qtorch(e, m)`` with fewer than 23 mantissa bits."""
        return self.mantissa_bits < 23 and self == FloatFormat.qtorch(self.exponent_bits, self.mantissa_bits)

    @classmethod
    def ieee(cls, exponent_bits: int, mantissa_bits: int) -> FloatFormat:
        """The IEEE 754 layout: the top exponent code is kept for infinity and NaN; a too large value becomes inf."""
        _check_bits(exponent_bits, mantissa_bits)
        largest_exponent = 2 ** (exponent_bits - 1) - 1
        return cls(exponent_bits, mantissa_bits, (2.0 - 2.0**-mantissa_bits) * 2.0**largest_exponent)

    @classmethod
    def qtorch(cls, exponent_bits: int, mantissa_bits: int) -> FloatFormat:
        """The numbers that QPyTorch 0.3.0's ``float_quantize`` rounds to; to be used with ``rounding="qtorch"``.

        (``"nearest_away"`` differs from it by what QPyTorch's arithmetic rounds on the way: just below half of a
        subnormal spacing, and for NaN.)

        Below 8 exponent bits the top exponent code holds numbers: no inf and no NaN, and (5, 10) reaches 131008. With
        8, inf and NaN are kept. There is no -0. (8, 23) is refused: QPyTorch flips signs there (QPyTorch issue 48).
        """
        _check_bits(exponent_bits, mantissa_bits)
        if (exponent_bits, mantissa_bits) == (8, 23):
            raise ValueError(
                "FloatFormat.qtorch(8, 23) is excluded: QPyTorch 0.3.0 flips signs there; use float32 without rounding"
            )
        if exponent_bits == 8:
            ieee = cls.ieee(8, mantissa_bits)
            return cls(8, mantissa_bits, ieee.max_value, signed_zero=False)
        largest_exponent = 2 ** (exponent_bits - 1)
        max_value = (2.0 - 2.0**-mantissa_bits) * 2.0**largest_exponent
        return cls(
            exponent_bits,
            mantissa_bits,
            max_value,
            has_inf=False,
            has_nan=False,
            signed_zero=False,
            overflow="saturate",
        )

    @classmethod
    def fp16(cls) -> FloatFormat:
        """IEEE half precision, (5, 10), maximum 65504."""
        return cls.ieee(5, 10)

    @classmethod
    def bf16(cls) -> FloatFormat:
        """bfloat16, (8, 7)."""
        return cls.ieee(8, 7)

    @classmethod
    def tf32(cls) -> FloatFormat:
        """NVIDIA's TensorFloat-32, (8, 10)."""
        return cls.ieee(8, 10)

    @classmethod
    def fp8_e4m3fn(cls) -> FloatFormat:
        """FP8 E4M3 of the OCP specification: maximum 448, no infinity.

        Too large values and infinities saturate, as torch 2.15 converts them (earlier releases gave NaN).
        """
        return cls(4, 3, 448.0, has_inf=False, overflow="saturate")

    @classmethod
    def fp8_e5m2(cls) -> FloatFormat:
        """FP8 E5M2 of the OCP specification: IEEE layout, maximum 57344."""
        return cls.ieee(5, 2)

    @classmethod
    def fp6_e3m2(cls) -> FloatFormat:
        """FP6 E3M2 of the OCP microscaling specification: maximum 28, no infinity, no NaN."""
        return cls(3, 2, 28.0, has_inf=False, has_nan=False, overflow="saturate")

    @classmethod
    def fp6_e2m3(cls) -> FloatFormat:
        """FP6 E2M3 of the OCP microscaling specification: maximum 7.5, no infinity, no NaN."""
        return cls(2, 3, 7.5, has_inf=False, has_nan=False, overflow="saturate")

    @classmethod
    def fp4_e2m1(cls) -> FloatFormat:
        """FP4 E2M1 of the OCP microscaling specification: maximum 6, no infinity, no NaN."""
        return cls(2, 1, 6.0, has_inf=False, has_nan=False, overflow="saturate")


def _check_bits(exponent_bits: int, mantissa_bits: int) -> None:
    """Refuses bit counts out of range before a maximum is computed from them."""
    if not (2 <= exponent_bits <= 8 and 0 <= mantissa_bits <= 23):
        raise ValueError(
            f"a float format has 2 to 8 exponent bits and 0 to 23 mantissa bits, got ({exponent_bits}, {mantissa_bits})"
        )
