"""Element-wise rounding to floating-point and fixed-point formats, with straight-through gradients."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel
from vitfast.ops.rounding import Rounding, StraightThrough, float_rounding


class Rounder(Protocol):
    """A rounding with its options; gradients pass straight through, except where ``clip_gradients`` masks them."""

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x`` of any shape."""
        ...

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        ...


@dataclass(frozen=True)
class FloatRounder:
    """Rounds to a ``FloatFormat``, see ``vitfast.ops.quantize_float``."""

    format: FloatFormat
    rounding: Rounding = "nearest_even"
    clip_gradients: bool = False  # elements beyond the format's largest value get no gradient

    @property
    def raw(self) -> list[int]:
        """The rounding as the raw operators encode it."""
        return float_rounding(self.format, self.rounding)

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x`` of any shape; warns if the format turns infinity or NaN into a number."""
        self.report_non_finite(x)
        if self.clip_gradients:
            x = mask_gradient(x, *self.limits)
        return ops.quantize_float(x, self.format, rounding=self.rounding)

    @property
    def limits(self) -> tuple[float, float]:
        return -self.format.max_value, self.format.max_value

    def report_non_finite(self, x: Tensor) -> None:
        """Warns if the format turns infinity or NaN in ``x`` into a number.

        On a GPU the warning comes with a later rounding: the values are read without waiting for the device.
        """
        if (self.format.has_inf and self.format.has_nan) or torch.compiler.is_compiling():
            return
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # values cannot be read while a graph is captured
        if x.is_cuda:
            is_hidden = _FLAGS.setdefault(x.device, DeviceFlag()).add(has_non_finite(x.detach()))
        else:
            is_hidden = bool(has_non_finite(x.detach()))
        if is_hidden:
            bits = f"({self.format.exponent_bits}, {self.format.mantissa_bits})"
            warnings.warn(
                f"infinity or NaN is rounded to a format {bits} that lacks it, and hidden: find its origin with "
                "vitfast.disable_fake_quantize(model)",
                RuntimeWarning,
                stacklevel=2,
            )


def has_non_finite(x: Tensor) -> Tensor:
    """Returns whether an element is infinity or NaN, as a scalar tensor, in one pass over ``x``."""
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device=x.device)
    smallest, largest = torch.aminmax(x)  # NaN if an element is
    return ~(smallest.isfinite() & largest.isfinite())


class DeviceFlag:
    """Collects flags on a GPU and reads their disjunction without waiting for the device.

    One copy to the host is in flight at a time and covers all flags since the previous one began. The host therefore
    learns of a flag with a later one, usually within the same training step.
    """

    def __init__(self) -> None:
        self._collected: Tensor | None = None  # flags since the copy in flight began
        self._in_flight: Tensor | None = None  # on the host
        self._event: torch.cuda.Event | None = None

    def add(self, flag: Tensor) -> bool:
        """Adds a scalar flag on the device; returns whether an earlier or this flag was set, as far as known."""
        self._collected = flag if self._collected is None else self._collected | flag
        is_set = False
        if self._in_flight is not None and self._event is not None:
            if not self._event.query():
                return False
            is_set = bool(self._in_flight)
        self._in_flight = self._collected.to("cpu", non_blocking=True)  # pinned, since it is non-blocking
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(flag.device))
        self._collected = None
        return is_set


_FLAGS: dict[torch.device, DeviceFlag] = {}


@dataclass(frozen=True)
class FixedRounder:
    """Rounds to fixed-point numbers, see ``vitfast.ops.quantize_fixed``."""

    word_length: int
    fraction_length: int
    clip_gradients: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return ops.quantize_fixed(x, self.word_length, self.fraction_length, clip_gradients=self.clip_gradients)

    @property
    def limits(self) -> tuple[float, float]:
        steps = 2.0 ** (self.word_length - 1)
        return -steps * 2.0**-self.fraction_length, (steps - 1) * 2.0**-self.fraction_length


def fits_fp16(rounder: Rounder) -> bool:
    """Returns whether float16 represents every number that ``rounder`` returns."""
    if isinstance(rounder, FloatRounder):
        return rounder.format.fits_fp16
    if not isinstance(rounder, FixedRounder):
        return False
    half = FloatFormat.fp16()
    has_range = 2.0**-rounder.fraction_length >= half.min_subnormal and -rounder.limits[0] <= half.max_value
    return has_range and rounder.word_length <= 2 + half.mantissa_bits  # a sign and the leading bit


def can_fuse(rounder: Rounder | None) -> TypeGuard[FloatRounder | None]:
    """Returns whether another operator can apply the rounding: nothing must be reported or masked."""
    if isinstance(rounder, FloatRounder):
        return rounder.format.has_inf and rounder.format.has_nan and not rounder.clip_gradients
    return rounder is None


def round_in_place(rounder: Rounder, x: Tensor) -> Tensor:
    """Rounds ``x``, in place where possible; the caller guarantees that nothing else reads it."""
    has_operator = not torch.compiler.is_compiling() and has_kernel("quantize_float", x.device.type)
    if not can_fuse(rounder) or not isinstance(rounder, FloatRounder) or not has_operator:
        return rounder(x)
    if not x.requires_grad:
        torch.ops.vitfast.quantize_float_.default(x, rounder.raw, None)
        return x
    return rounder(x) if x.is_leaf else _RoundInPlace.apply(x, rounder.raw)


class _RoundInPlace(torch.autograd.Function):
    """Rounds in place with the straight-through gradient (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: list[int]) -> Tensor:
        ctx.mark_dirty(x)
        torch.ops.vitfast.quantize_float_.default(x, raw, None)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def round_to_integers(x: Tensor, low: int, high: int, *, clip_gradients: bool = False) -> Tensor:
    """Rounds ``x`` to integers from ``low`` to ``high``, half to even, in a new tensor of its dtype. NaN stays NaN.

    ``clip_gradients``: clamped elements get no gradient; otherwise all gradients pass straight through (Bengio et al.,
    2013).
    """
    if clip_gradients:
        x = mask_gradient(x, low, high)
    return StraightThrough.apply(x, x.detach().round().clamp(low, high))


def mask_gradient(x: Tensor, low: float, high: float) -> Tensor:
    """Returns ``x`` itself, with no gradient where it is below ``low`` or above ``high``."""
    constant = x.detach()
    return torch.where((constant >= low) & (constant <= high), x, constant)
