"""What rounds a tensor element by element: to a floating-point or to a fixed-point format."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.rounding import Rounding, float_rounding
from vitfast.quantization.straight_through import mask_gradient


class Rounder(Protocol):
    """A rounding with its options; gradients pass straight through, but for the clipping mask where it is asked for."""

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x`` of any shape."""
        ...

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        ...


@dataclass(frozen=True)
class FloatRounder:
    """Rounds to a ``FloatFormat``, see ``vitfast.ops.quantize_float``.

    Attributes:
        format: the format.
        rounding: which way.
        clip_gradients: whether elements beyond the format's largest value get no gradient.
    """

    format: FloatFormat
    rounding: Rounding = "nearest_even"
    clip_gradients: bool = False

    @property
    def raw(self) -> list[int]:
        """The rounding as raw operators take it."""
        return float_rounding(self.format, self.rounding)

    @property
    def can_fuse(self) -> bool:
        """Whether the operator that computes what is rounded can round it: nothing is to be reported or masked."""
        return self.format.has_inf and self.format.has_nan and not self.clip_gradients

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x`` of any shape; warns where the format turns what is not finite into a number."""
        self.report_non_finite(x)
        if self.clip_gradients:
            x = mask_gradient(x, -self.format.max_value, self.format.max_value)
        return ops.quantize_float(x, self.format, rounding=self.rounding)

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return -self.format.max_value, self.format.max_value

    def report_non_finite(self, x: Tensor) -> None:
        """Warns where the format turns what is not finite in ``x`` into a number."""
        if (self.format.has_inf and self.format.has_nan) or torch.compiler.is_compiling():
            return
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a graph cannot ask what it has computed
        if not bool(torch.isfinite(x.detach()).all()):
            bits = f"({self.format.exponent_bits}, {self.format.mantissa_bits})"
            warnings.warn(
                f"infinity or NaN is rounded to a format {bits} that lacks it, and hidden: look for its origin "
                "with vitfast.disable_fake_quantize(model)",
                RuntimeWarning,
                stacklevel=2,
            )


@dataclass(frozen=True)
class FixedRounder:
    """Rounds to fixed-point numbers, see ``vitfast.ops.quantize_fixed``."""

    word_length: int
    fraction_length: int
    clip_gradients: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x`` of any shape."""
        return ops.quantize_fixed(x, self.word_length, self.fraction_length, clip_gradients=self.clip_gradients)

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        steps = 2.0 ** (self.word_length - 1)
        return -steps * 2.0**-self.fraction_length, (steps - 1) * 2.0**-self.fraction_length
