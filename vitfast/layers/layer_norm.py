"""LayerNorm on vitfast's operators."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vitfast import ops
from vitfast.layers.fusion import has_hooks


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last dimension, with an optional fused residual addition.

    Args:
        dim: number of channels C.
        eps: added to the variance. 1e-6 in Google's ViT, DeiT and timm; 1e-5 in myrtle-vision and Pytorch-VIT.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``x`` of shape ``[..., C]``."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def fused_add(
        self, x: Tensor, residual: Tensor, round_sum: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Adds ``x`` and ``residual`` ``[..., C]`` and normalizes in one pass over memory.

        Returns:
            ``(x + residual, normalized sum)``, both ``[..., C]``; None if a hook or ``round_sum`` prevents it.
        """
        if round_sum is not None or has_hooks(self):
            return None
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)
