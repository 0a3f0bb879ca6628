"""Number formats and, on top of them, quantization."""

from vitfast.formats import FloatFormat

__all__ = ["FloatFormat"]
