"""Registration of fake kernels, autograd formulas and FLOP formulas of the raw operators with torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from vitfast.ops.library import is_loaded


def register(
    operator: str,
    fake: Callable[..., Any],
    *,
    flops: Callable[..., int] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    gradient_of: str | None = None,
) -> None:
    """Registers what torch requires besides the kernels of a raw operator; a no-op without the native library.

    Args:
        operator: name in ``torch.ops.vitfast``.
        fake: fake kernel.
        flops: formula for ``torch.utils.flop_counter``; takes shapes in place of tensors.
        backward: autograd formula.
        setup_context: saves tensors for ``backward``.
        gradient_of: public name of the operator whose gradient this operator computes; double backward is then an
            error that names it.
    """
    if not is_loaded():
        return
    from torch.utils.flop_counter import register_flop_formula

    name = f"vitfast::{operator}"
    torch.library.register_fake(name)(fake)
    if gradient_of is not None:
        backward = _no_double_backward(gradient_of)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context)
    if flops is not None:
        register_flop_formula(getattr(torch.ops.vitfast, operator))(flops)


def _no_double_backward(public_name: str) -> Callable[..., NoReturn]:
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise NotImplementedError(
            f"vitfast.ops.{public_name} has no second derivative; for double backward compute it with "
            f"vitfast.ops.reference.{public_name}"
        )

    return backward


def gemm_flops(x: Any, outputs: int) -> int:
    """FLOPs of ``x wᵀ``, two per multiply-add, from the shapes of x ``[..., K]`` and w ``[outputs, K]``."""
    flops: int = 2 * math.prod(x) * outputs
    return flops
