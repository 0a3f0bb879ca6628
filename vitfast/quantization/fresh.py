"""Tensors that nobody else reads: they are rounded in place, which saves the memory of another one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vitfast.ops.library import has_kernel
from vitfast.quantization.rounders import FloatRounder, Rounder

_MARK = "_vitfast_is_fresh"


def mark_fresh(x: Tensor, *readers: nn.Module) -> Tensor:
    """Says that the next linear layer may overwrite ``x``, unless a hook of ``readers`` sees it; returns ``x``."""
    if not torch.compiler.is_compiling() and not any(map(is_hooked, readers)):
        setattr(x, _MARK, True)
    return x


def take_fresh(x: Tensor) -> bool:
    """Whether ``mark_fresh`` said so; it is true once."""
    if torch.compiler.is_compiling() or not hasattr(x, _MARK):
        return False
    delattr(x, _MARK)
    return True


def is_hooked(module: nn.Module) -> bool:
    """Whether anybody looks at what goes into or comes out of a module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or bool(_has_any_global_hook())


def round_fresh(rounder: Rounder, x: Tensor) -> Tensor:
    """Rounds ``x``, which nobody else reads; the result may be ``x`` itself."""
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
    """Rounding in place with the straight-through gradient (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: list[int]) -> Tensor:
        ctx.mark_dirty(x)
        torch.ops.vitfast.quantize_float_.default(x, raw, None)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
