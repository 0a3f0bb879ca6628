"""The twins of vitfast's models: concatenated tokens and added positions are stored results."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfast.models import ConViT, DistilledVisionTransformer, VisionTransformer
from vitfast.quantization.quantized_module import QuantizedModule


class QuantizedVisionTransformer(QuantizedModule, VisionTransformer):
    """Twin of ``VisionTransformer``."""

    def add_positions(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """Puts ``prefix`` ``[1, T, C]`` before ``patches`` ``[B, N, C]`` and adds the positions."""
        if self.is_off:
            return super().add_positions(prefix, patches)
        tokens = self.stored(torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1), fresh=True)
        return self.stored(tokens + self.pos_embed, fresh=True)


class QuantizedDistilledVisionTransformer(QuantizedVisionTransformer, DistilledVisionTransformer):
    """Twin of ``DistilledVisionTransformer``."""

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block, the distillation token among them."""
        if self.is_off or self.fields.distillation_token == "after_class" or not self.training:
            return super().embed(images)
        tokens = self.add_positions(self.cls_token, self.patch_embed(images))
        tokens = torch.cat([tokens, self.dist_token.expand(tokens.shape[0], -1, -1)], dim=1)
        dropped: Tensor = self.pos_drop(self.stored(tokens))
        return dropped


class QuantizedConViT(QuantizedModule, ConViT):
    """Twin of ``ConViT``, whose class token joins the patches between two blocks."""

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block."""
        if self.is_off:
            return super().embed(images)
        dropped: Tensor = self.pos_drop(self.stored(self.patch_embed(images) + self.pos_embed))
        return dropped

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the last block and ``norm``, the class token first."""
        if self.is_off:
            return super().forward_features(images)
        tokens = self.embed(images)
        for index, block in enumerate(self.blocks):
            if index == self.fields.local_up_to_layer:
                tokens = self.stored(torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1))
            tokens = block(tokens)
        normalized: Tensor = self.norm(tokens)
        return normalized
