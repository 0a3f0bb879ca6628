"""The twins of vitfast's models: concatenated tokens and added positions are stored results."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfast.layers.image_check import check_images
from vitfast.models import DVT, ConViT, DistilledVisionTransformer, T2TViT, VisionTransformer
from vitfast.models.dvt_exit import DVTExit
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


class QuantizedT2TViT(QuantizedModule, T2TViT):
    """Twin of ``T2TViT``."""

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block."""
        if self.is_off:
            return super().embed(images)
        check_images(images, self.in_chans, self.img_size)
        dropped: Tensor = self.pos_drop(_join_and_place(self, self.tokens_to_token(images)))
        return dropped


class QuantizedDVTExit(QuantizedModule, DVTExit):
    """Twin of ``DVTExit``."""

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block."""
        if self.is_off:
            return super().embed(images)
        dropped: Tensor = self.pos_drop(_join_and_place(self, self.patch_embed(images)))
        return dropped


class QuantizedDVT(QuantizedModule, DVT):
    """Twin of ``DVT``, which adds nothing itself: its exits do."""


def _join_and_place(module: QuantizedT2TViT | QuantizedDVTExit, patches: Tensor) -> Tensor:
    """Puts the class token before the patches ``[B, N, C]`` and adds the positions, two stored results."""
    tokens = module.stored(torch.cat([module.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1))
    return module.stored(tokens + module.pos_embed)
