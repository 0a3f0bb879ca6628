"""The twins of vitfast's layers: the fused operators come apart, so that every linear layer and LayerNorm is called."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vitfast.layers import Attention, Block, GatedPositionalAttention, LayerNorm, Mlp, PatchEmbed
from vitfast.layers.image_check import check_images
from vitfast.quantization.quantized_module import QuantizedModule, QuantizedNorm, QuantizedProduct, autocast_off


class QuantizedVitfastLayerNorm(QuantizedNorm, LayerNorm):
    """Twin of ``vitfast.layers.LayerNorm``; its ``add`` is not called, because the block's twin adds."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``[..., C]``."""
        if self.is_off:
            return super().forward(x)
        with autocast_off(x):
            return self.result(super().forward(self.operand(x.to(self.weight.dtype))))


class QuantizedMlp(QuantizedModule, Mlp):
    """Twin of ``Mlp``; GELU's result is rounded where ``fc2`` reads it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes ``mlp(x) + residual`` ``[B, N, C]``."""
        if self.is_off:
            return super().forward(x, residual)
        hidden = self.drop(F.gelu(self.fc1(x), approximate=self.approximate))
        out: Tensor = self.drop(self.fc2(hidden))
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
        x = self.stored(x + self.drop_path(self.attn(self.norm1(x))))
        return self.stored(x + self.drop_path(self.mlp(self.norm2(x))))


class QuantizedPatchEmbed(QuantizedModule, PatchEmbed):
    """Twin of ``PatchEmbed``: a linear layer over patches, whatever shape its weight has."""

    def forward(self, images: Tensor) -> Tensor:
        """Embeds the patches of ``[B, in_chans, img_size, img_size]``: ``[B, N, C]``."""
        if self.is_off or not isinstance(self.proj, QuantizedProduct):
            return super().forward(images)
        check_images(images, self.in_chans, self.img_size)
        return self.proj.product(F.linear, self._flatten_patches(images), self.proj.weight.flatten(1))
