"""Rounding in place, which saves the allocation of a second tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitfast.ops.library import has_kernel
from vitfast.quantization.rounders import FloatRounder, Rounder


def round_in_place(rounder: Rounder, x: Tensor) -> Tensor:
    """Rounds ``x``, in place where possible; the caller guarantees that nothing else reads it."""
    fuses = isinstance(rounder, FloatRounder) and rounder.can_fuse and not torch.compiler.is_compiling()
    if not fuses or not has_kernel("quantize_float", x.device.type):
        return rounder(x)
    assert isinstance(rounder, FloatRounder)
    if x.requires_grad and not x.is_leaf:
        rounded: Tensor = _RoundInPlace.apply(x, rounder.raw)
        return rounded
    if x.requires_grad:
        return rounder(x)
    torch.ops.vitfast.quantize_float_.default(x, rounder.raw, None)
    return x


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
