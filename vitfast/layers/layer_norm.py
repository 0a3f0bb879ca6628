"""LayerNorm on vitfast's operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitfast import ops
from vitfast.layers.fusion import has_hooks
from vitfast.ops.autocast import autocast_dtype


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last dimension, with an optional fused residual addition.

    Args:
        dim: number of channels C.
        eps: added to the variance. 1e-6 in Google's ViT, DeiT and timm; 1e-5 in myrtle-vision and Pytorch-VIT.
        feeds_linear: whether only linear layers read the result. It then has autocast's dtype under autocast, to which
            they would convert it.
    """

    def __init__(self, dim: int, eps: float = 1e-6, *, feeds_linear: bool = False) -> None:
        super().__init__(dim, eps=eps)
        self.feeds_linear = feeds_linear

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``x`` of shape ``[..., C]``."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps, out_dtype=self._out_dtype(x))

    def _out_dtype(self, x: Tensor) -> torch.dtype | None:
        return autocast_dtype(x) if self.feeds_linear else None

    def fused_add(
        self, x: Tensor, residual: Tensor, round_sum: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Adds ``x`` and ``residual`` ``[..., C]`` and normalizes in one pass over memory.

        Returns:
            ``(x + residual, normalized sum)``, both ``[..., C]``; None if a hook or ``round_sum`` prevents it.
        """
        if round_sum is not None or has_hooks(self):
            return None
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps, out_dtype=self._out_dtype(x))
