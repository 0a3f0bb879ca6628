"""A float format with its rounding, as raw operators take it: one list of integers."""

from __future__ import annotations

from vitfast.formats import FloatFormat
from vitfast.ops.rounding import OVERFLOW_CODES, QTORCH_NEAREST, ROUNDING_CODES


def float_rounding(format: FloatFormat, rounding: str = "nearest_even", overflow: str | None = None) -> list[int]:
    """Checks a format and its options and writes what ``csrc/quantize/rounding_arguments.h`` reads.

    Args:
        format: a ``vitfast.FloatFormat``.
        rounding: a key of ``ROUNDING_CODES``, or ``"qtorch"``.
        overflow: ``"inf"``, ``"nan"`` or ``"saturate"``; None takes the format's own.

    Raises:
        TypeError: ``format`` is no float format.
        ValueError: an unknown rounding or overflow, or one that the format cannot express.
    """
    if rounding not in ROUNDING_CODES and rounding != "qtorch":
        raise ValueError(f"rounding must be one of {', '.join(ROUNDING_CODES)}, qtorch; got {rounding!r}")
    if not hasattr(format, "exponent_bits"):
        raise TypeError(f"format must be a vitfast.FloatFormat such as FloatFormat.fp16(), got {type(format).__name__}")
    if rounding == "qtorch" and (overflow is not None or not format.is_qtorch):
        raise ValueError(
            f"rounding='qtorch' goes with FloatFormat.qtorch(e, m) of at most 22 mantissa bits and its own overflow, "
            f"got {format} and overflow={overflow!r}"
        )
    overflow = format.overflow if overflow is None else overflow
    if overflow not in OVERFLOW_CODES:
        raise ValueError(f"overflow must be one of {', '.join(OVERFLOW_CODES)}, got {overflow!r}")
    if (overflow == "inf" and not format.has_inf) or (overflow == "nan" and not format.has_nan):
        raise ValueError(f"overflow={overflow!r} is no value of {format}; use overflow='saturate'")
    return [
        format.exponent_bits,
        format.mantissa_bits,
        format.max_bits,
        int(format.has_inf),
        int(format.has_nan),
        int(format.signed_zero),
        OVERFLOW_CODES[overflow],
        QTORCH_NEAREST if rounding == "qtorch" else ROUNDING_CODES[rounding],
    ]
