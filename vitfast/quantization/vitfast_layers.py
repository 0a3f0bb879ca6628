"""The twins of vitfast's layers: the fused operators come apart, so that every linear layer and LayerNorm is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.layers import Attention, Block, GatedPositionalAttention, LayerNorm, Mlp, PatchEmbed
from vitfast.layers.image_check import check_images
from vitfast.quantization.arithmetic import FusedNorm
from vitfast.quantization.fresh import is_hooked, mark_fresh
from vitfast.quantization.quantized_module import QuantizedModule, QuantizedNorm, QuantizedProduct, autocast_off
from vitfast.quantization.rounders import FloatRounder


class QuantizedVitfastLayerNorm(QuantizedNorm, LayerNorm):
    """Twin of ``vitfast.layers.LayerNorm``; rounds in the operator where that can."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``[..., C]``."""
        if self.is_off:
            return super().forward(x)
        with autocast_off(x):
            x = x.to(self.weight.dtype)
            fused = self.fused
            if fused is None:
                return self.result(super().forward(self.operand(x)))
            return ops.layer_norm(
                x, self.weight, self.bias, self.eps, round_operand=fused.operand, round_result=fused.result
            )

    @property
    def fused(self) -> FusedNorm | None:
        """What rounds within the operator; None if roundings are calls of their own."""
        quantization = self.quantization
        if quantization.mode != "quantized":
            return None
        return quantization.arithmetic.fused_norm(converted=quantization.converted)

    def add_fused(self, x: Tensor, residual: Tensor, fused: FusedNorm, round_sum: FloatRounder | None) -> Any:
        """Adds and normalizes in one pass, as ``add`` does, with every rounding; returns (sum, normalized sum)."""
        return ops.add_layer_norm(
            x,
            residual,
            self.weight,
            self.bias,
            self.eps,
            round_sum=round_sum,
            round_operand=fused.operand,
            round_result=fused.result,
        )


class QuantizedMlp(QuantizedModule, Mlp):
    """Twin of ``Mlp``; GELU's result is rounded where ``fc2`` reads it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes ``mlp(x) + residual`` ``[B, N, C]``."""
        if self.is_off:
            return super().forward(x, residual)
        hidden = self.drop(F.gelu(self.fc1(x), approximate=self.approximate))
        out: Tensor = self.drop(self.fc2(mark_fresh(hidden, self.drop, self.fc2)))
        return out if residual is None else out + residual


class QuantizedAttention(QuantizedModule, Attention):
    """Twin of ``Attention``: nothing is rounded between ``qkv`` and ``proj``, not even by autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Attends over the tokens ``[B, N, C]``."""
        if self.is_off:
            return super().forward(x)
        with autocast_off(x):
            return super().forward(x)


class QuantizedGatedPositionalAttention(QuantizedModule, GatedPositionalAttention):
    """Twin of ``GatedPositionalAttention``; ``pos_proj`` belongs to the softmax and stays float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Attends over the patches ``[B, N, C]``."""
        if self.is_off:
            return super().forward(x)
        with autocast_off(x):
            return super().forward(x)


class QuantizedBlock(QuantizedModule, Block):
    """Twin of ``Block``: both additions to the residual stream are stored results."""

    def forward(self, x: Tensor) -> Tensor:
        """Transforms the residual stream ``[B, N, C]``."""
        if self.is_off:
            return super().forward(x)
        attended = self.drop_path(self.attn(self._for(self.attn, "qkv", self.norm1, self.norm1(x))))
        fused, round_sum = self._fused_addition(x, attended)
        if fused is None:
            x = self.stored(x + attended, fresh=True)
            normalized = self.norm2(x)
        else:
            with autocast_off(x):
                x, normalized = self.norm2.add_fused(attended, x, fused, round_sum)
        branch = self.drop_path(self.mlp(self._for(self.mlp, "fc1", self.norm2, normalized)))
        return self.stored(x + branch, fresh=True)

    def _for(self, reader: nn.Module, name: str, norm: nn.Module, normalized: Tensor) -> Tensor:
        """Marks what a LayerNorm gives as read by one linear layer only."""
        layer = getattr(reader, name, None)
        if layer is None or not isinstance(norm, nn.LayerNorm):
            return normalized
        return mark_fresh(normalized, norm, reader, layer)

    def _fused_addition(self, x: Tensor, attended: Tensor) -> tuple[FusedNorm | None, FloatRounder | None]:
        """How the first addition runs within the second LayerNorm, unless somebody looks in between."""
        norm, quantization = self.norm2, self.quantization
        if not isinstance(norm, QuantizedVitfastLayerNorm) or is_hooked(norm):
            return None, None
        if not x.dtype == attended.dtype == norm.weight.dtype or quantization.mode != "quantized":
            return None, None
        if not quantization.arithmetic.rounds_results:
            return norm.fused, None
        own = quantization.arithmetic.fused_norm(converted=False)
        return (None, None) if own is None else (norm.fused, own.result)


class QuantizedPatchEmbed(QuantizedModule, PatchEmbed):
    """Twin of ``PatchEmbed``: a linear layer over patches, whatever shape its weight has."""

    def forward(self, images: Tensor) -> Tensor:
        """Embeds the patches of ``[B, in_chans, img_size, img_size]``: ``[B, N, C]``."""
        if self.is_off or not isinstance(self.proj, QuantizedProduct):
            return super().forward(images)
        check_images(images, self.in_chans, self.img_size)
        return self.proj.product(F.linear, self._flatten_patches(images), self.proj.weight.flatten(1))
