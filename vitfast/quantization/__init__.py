"""Number formats and, on top of them, quantization."""

from vitfast.quantization.formats import FloatFormat

__all__ = ["FloatFormat"]
