"""The twins of vitfast's layers: the fused operators come apart, so that every linear layer and LayerNorm is called."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.layers import Attention, Block, GatedPositionalAttention, LayerNorm, Mlp, PatchEmbed
from vitfast.layers.image_check import check_images
from vitfast.quantization.arithmetic import FusedNorm
from vitfast.quantization.fresh import is_hooked, mark_fresh
from vitfast.quantization.quantized_module import QuantizedModule, QuantizedNorm, QuantizedProduct, autocast_off


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


class QuantizedMlp(QuantizedModule, Mlp):
    """Twin of ``Mlp``; GELU's result is rounded where ``fc2`` reads it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes ``mlp(x) + residual`` ``[B, N, C]``."""
        if self.is_off:
            return super().forward(x, residual)
        hidden = self.drop(self._activated(self.fc1(x)))
        out: Tensor = self.drop(self.fc2(mark_fresh(hidden, self.drop, self.fc2)))
        return out if residual is None else out + residual

    def _activated(self, hidden: Tensor) -> Tensor:
        """GELU, in place where nobody else reads what ``fc1`` gives: a second tensor of that size costs page faults."""
        is_own = not hidden.requires_grad and isinstance(self.fc1, nn.Linear) and not is_hooked(self.fc1)
        if not is_own or torch.compiler.is_compiling():
            return F.gelu(hidden, approximate=self.approximate)
        torch.ops.aten.gelu_.default(hidden, approximate=self.approximate)
        return hidden


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
        normalized = self.norm1(x)
        _may_overwrite(normalized, self.norm1, self.attn, "qkv")
        x, normalized = self._add_and_normalize(x, self.drop_path(self.attn(normalized)))
        _may_overwrite(normalized, self.norm2, self.mlp, "fc1")
        return self.stored(x + self.drop_path(self.mlp(normalized)), fresh=True)

    def _add_and_normalize(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """The first addition runs within the second LayerNorm, unless somebody looks at what goes in there."""
        norm, quantization = self.norm2, self.quantization
        fused = norm.fused if isinstance(norm, QuantizedVitfastLayerNorm) and not is_hooked(norm) else None
        round_sum = None
        if fused is not None and quantization.arithmetic.rounds_results:
            own = quantization.arithmetic.fused_norm(converted=False)
            fused, round_sum = (None, None) if own is None else (fused, own.result)
        has_one_type = x.dtype == attended.dtype == norm.weight.dtype
        if fused is None or quantization.mode != "quantized" or not has_one_type:
            x = self.stored(x + attended, fresh=True)
            return x, norm(x)
        with autocast_off(x):
            return ops.add_layer_norm(
                attended,
                x,
                norm.weight,
                norm.bias,
                norm.eps,
                round_sum=round_sum,
                round_operand=fused.operand,
                round_result=fused.result,
            )


def _may_overwrite(normalized: Tensor, norm: nn.Module, reader: nn.Module, name: str) -> None:
    """Marks what a LayerNorm gives, which only the linear layer ``name`` of ``reader`` reads."""
    layer = getattr(reader, name, None)
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.LayerNorm):
        mark_fresh(normalized, norm, reader, layer)


class QuantizedPatchEmbed(QuantizedModule, PatchEmbed):
    """Twin of ``PatchEmbed``: a linear layer over patches, whatever shape its weight has."""

    def forward(self, images: Tensor) -> Tensor:
        """Embeds the patches of ``[B, in_chans, img_size, img_size]``: ``[B, N, C]``."""
        if self.is_off or not isinstance(self.proj, QuantizedProduct):
            return super().forward(images)
        check_images(images, self.in_chans, self.img_size)
        return self.proj.product(F.linear, self._flatten_patches(images), self.proj.weight.flatten(1))
