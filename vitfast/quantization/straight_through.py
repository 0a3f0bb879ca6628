"""Rounding to whole numbers with a straight-through gradient: what integer and fixed-point quantizers are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def round_to_integers(x: Tensor, low: int, high: int, *, clip_gradients: bool = False) -> Tensor:
    """Rounds to whole numbers, half to even, and clamps them; the type stays.

    Args:
        x: any shape, floating point.
        low: the smallest result.
        high: the largest result.
        clip_gradients: whether clamped elements get no gradient; otherwise all gradients pass straight through (Bengio
            et al., 2013).

    Returns:
        A new tensor of x's shape and type. NaN stays NaN.
    """
    rounded: Tensor = _RoundStraightThrough.apply(mask_gradient(x, low, high) if clip_gradients else x, low, high)
    return rounded


def mask_gradient(x: Tensor, low: float, high: float) -> Tensor:
    """Returns ``x`` itself, with no gradient where it is below ``low`` or above ``high``."""
    constant = x.detach()
    return torch.where((constant >= low) & (constant <= high), x, constant)


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: int, high: int) -> Tensor:
        return x.round().clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None
