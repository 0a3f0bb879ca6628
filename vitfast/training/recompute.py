"""Gradient checkpointing: blocks are computed again in the backward pass instead of storing their activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitfast.errors import UserError
from vitfast.layers import Block, ReuseBlock
from vitfast.models import ImageModel
from vitfast.models.foreign_model import ForeignModel


def recompute_blocks(model: ImageModel) -> None:
    """Makes a model's blocks store only their input in training, in place; loss and gradients stay the same.

    The state of the random generators is restored for the second computation, so dropout repeats its masks. timm's
    networks use their own implementation.

    Args:
        model: a model with ``Block`` or ``ReuseBlock``, or of timm.

    Raises:
        UserError: the model has no such blocks, or timm does not support it for this network.
    """
    if isinstance(model, ForeignModel):
        enable: Callable[[], None] | None = getattr(model.network, "set_grad_checkpointing", None)
        if enable is None:
            raise _unsupported(model)
        try:
            enable()
        except AssertionError as error:
            raise _unsupported(model) from error
        return
    blocks = [module for module in model.modules() if isinstance(module, (Block, ReuseBlock))]
    if not blocks:
        raise _unsupported(model)
    for block in blocks:
        block.forward = _Recomputed(block)  # type: ignore[method-assign]


class _Recomputed:
    """The forward function of a block; an object rather than a closure, so that a copied model calls its own block."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        forward: Callable[..., Any] = type(self.block).forward
        if self.block.training and torch.is_grad_enabled():
            return checkpoint(forward, self.block, *arguments, use_reentrant=False, **options)
        return forward(self.block, *arguments, **options)


def _unsupported(model: ImageModel) -> UserError:
    return UserError(f"train.recompute=true does not support {model.model_name}; use train.accumulate to save memory")
