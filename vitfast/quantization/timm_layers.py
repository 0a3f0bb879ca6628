"""Quantized counterparts of timm's ViT; imported only after timm."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.ops.autocast import autocast_off
from vitfast.quantization.arithmetic import Arithmetic
from vitfast.quantization.quantized_module import QuantizedModule
from vitfast.quantization.torch_layers import QuantizedLayerNorm


class QuantizedTimmLayerNorm(QuantizedLayerNorm, LayerNorm):
    """Counterpart of timm's ``LayerNorm``."""


class QuantizedTimmAttention(QuantizedModule, Attention):
    """Counterpart of timm's ``Attention``: nothing is rounded between ``qkv`` and ``proj``, not even by autocast."""

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        with nullcontext() if self.is_off else autocast_off(x):
            return super().forward(x, *arguments, **options)


class QuantizedTimmBlock(QuantizedModule, Block):
    """Counterpart of timm's ``Block``: both additions to the residual stream are stored results."""

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        attended = self.attn(self.norm1(x), *arguments, **options)
        x = self.stored(x + self.drop_path1(self.ls1(attended)))
        return self.stored(x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


class QuantizedTimmVisionTransformer(QuantizedModule, VisionTransformer):
    """Counterpart of timm's ``VisionTransformer``: concatenated tokens and added positions are stored results."""

    @staticmethod
    def check(module: nn.Module, arithmetic: Arithmetic) -> None:
        """Rejects positions that are resampled in the forward pass if their sum is rounded."""
        if module.dynamic_img_size and arithmetic.rounder("stored"):
            raise UserError(
                "a format that rounds results does not go with timm's dynamic_img_size=True; create the model with "
                "the img_size you need"
            )

    def _pos_embed(self, x: Tensor) -> Tensor:
        if self.is_off or self.dynamic_img_size:
            return super()._pos_embed(x)
        tokens = (self.cls_token, getattr(self, "dist_token", None), self.reg_token)
        prefix = [token.expand(x.shape[0], -1, -1) for token in tokens if token is not None]
        x = x.view(x.shape[0], -1, x.shape[-1])
        if self.pos_embed is not None and self.no_embed_class:
            x = self.stored(x + self.pos_embed)
        if prefix:
            x = self.stored(torch.cat([*prefix, x], dim=1))
        if self.pos_embed is not None and not self.no_embed_class:
            x = self.stored(x + self.pos_embed)
        return self.pos_drop(x)


class QuantizedTimmDistilledVisionTransformer(QuantizedTimmVisionTransformer, VisionTransformerDistilled):
    """Counterpart of timm's ``VisionTransformerDistilled`` (DeiT)."""


COUNTERPARTS: dict[type[nn.Module], type[QuantizedModule]] = {
    LayerNorm: QuantizedTimmLayerNorm,
    Attention: QuantizedTimmAttention,
    Block: QuantizedTimmBlock,
    VisionTransformer: QuantizedTimmVisionTransformer,
    VisionTransformerDistilled: QuantizedTimmDistilledVisionTransformer,
}
