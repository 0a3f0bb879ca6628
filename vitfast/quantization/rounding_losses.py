"""Counts of values that rounding saturates or flushes to zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.quantization.arithmetic import RoundedArithmetic
from vitfast.quantization.int8_arithmetic import Int8Arithmetic, quantize_weight, weight_scale
from vitfast.quantization.quantize import quantized_modules
from vitfast.quantization.quantized_module import QuantizedLinearBase
from vitfast.quantization.rounders import Rounder


@dataclass
class RoundingLosses:
    """Counts over rounded values."""

    values: int = 0
    saturated: int = 0  # finite values beyond the format's largest value
    flushed: int = 0  # nonzero values that became zero
    non_finite: int = 0  # infinities and NaNs before rounding

    @property
    def saturated_share(self) -> float:
        """0 to 1; 0 if nothing was rounded."""
        return self.saturated / max(self.values, 1)

    @property
    def flushed_share(self) -> float:
        """0 to 1; 0 if nothing was rounded."""
        return self.flushed / max(self.values, 1)

    def count(self, x: Tensor, rounded: Tensor, limits: tuple[float, float] | tuple[Tensor, Tensor]) -> None:
        """Counts the elements of ``x`` and ``rounded``, of the same shape; ``limits`` are the extreme values."""
        finite = torch.isfinite(x)
        self.values += x.numel()
        self.saturated += int((finite & ((x < limits[0]) | (x > limits[1]))).sum())
        self.flushed += int(((x != 0) & (rounded == 0)).sum())
        self.non_finite += int(x.numel() - finite.sum())

    def add(self, other: RoundingLosses) -> None:
        """Adds the counts of ``other``."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


def watch_activations(model: nn.Module) -> dict[str, RoundingLosses]:
    """Makes a quantized model count the activations that it rounds from now on, which makes it slower.

    Returns:
        The counts, by quantized module.
    """
    watched = {}
    for name, module in quantized_modules(model).items():
        losses = watched[name] = RoundingLosses()
        arithmetic = module.quantization.arithmetic
        if isinstance(arithmetic, RoundedArithmetic):
            counting = _Counting(arithmetic.rounding, losses, getattr(module, "weight", None))
            module.quantization.arithmetic = replace(arithmetic, rounding=counting)
        elif isinstance(arithmetic, Int8Arithmetic):
            module.quantization.arithmetic = _CountingInt8(**vars(arithmetic), losses=losses)
    return watched


def weight_losses(model: nn.Module, unrounded: nn.Module) -> dict[str, RoundingLosses]:
    """Counts the effect of rounding on the weights of a quantized model; ``unrounded`` has the original ones."""
    counted = {}
    for name, module in quantized_modules(model).items():
        losses = counted[name] = RoundingLosses()
        arithmetic = module.quantization.arithmetic
        is_linear = isinstance(module, QuantizedLinearBase)
        weight = getattr(unrounded.get_submodule(name), "weight", None)
        if not isinstance(weight, Tensor):
            continue
        weight = weight.detach()
        if isinstance(arithmetic, RoundedArithmetic):
            if is_linear or arithmetic.rounds_gamma or arithmetic.converted:
                losses.count(weight, arithmetic.rounding(weight), arithmetic.rounding.limits)
        elif isinstance(arithmetic, Int8Arithmetic) and is_linear:
            losses.count(weight, quantize_weight(weight, weight_scale(weight)), (-torch.inf, torch.inf))
    return counted


@dataclass(frozen=True)
class _Counting:
    """Counts into ``losses``, except for the module's weight, which every batch rounds again."""

    rounder: Rounder
    losses: RoundingLosses
    weight: Tensor | None

    @property
    def limits(self) -> tuple[float, float]:
        return self.rounder.limits

    def __call__(self, x: Tensor) -> Tensor:
        rounded = self.rounder(x)
        if self.weight is None or x.untyped_storage().data_ptr() != self.weight.untyped_storage().data_ptr():
            self.losses.count(x.detach(), rounded.detach(), self.limits)
        return rounded


@dataclass(frozen=True)
class _CountingInt8(Int8Arithmetic):
    losses: RoundingLosses | None = None

    def quantize_input(self, layer: Any, x: Tensor, weight_dim: int) -> tuple[Tensor, Tensor]:
        integers, scale = super().quantize_input(layer, x, weight_dim)
        assert self.losses is not None
        limits: tuple[float, float] | tuple[Tensor, Tensor] = (-torch.inf, torch.inf)
        if self.calibrated:
            limits = layer.activation_range.unbind()
        self.losses.count(x.detach(), integers.detach(), limits)
        return integers, scale
