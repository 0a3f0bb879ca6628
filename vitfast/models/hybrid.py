"""The hybrid of a ResNet and a Vision Transformer."""

from __future__ import annotations

import torch
from torch import nn

from vitfast.layers import Bottleneck, HybridEmbed, StdConv2d
from vitfast.models.hybrid_fields import HybridFields
from vitfast.models.vit import VisionTransformer


class HybridViT(VisionTransformer):
    """The hybrid of Dosovitskiy et al. (2021), section 3.1: a ViT over a ResNet's features, with timm's names.

    Args:
        model_name: as in ``ImageModel``.
        fields: everything that defines it.
    """

    fields: HybridFields

    def __init__(self, model_name: str, fields: HybridFields) -> None:
        super().__init__(model_name, fields)
        self.patch_embed = HybridEmbed(  # type: ignore[assignment]
            fields.img_size,
            fields.patch_size,
            fields.in_chans,
            fields.embed_dim,
            layers=fields.resnet_layers,
            width=fields.resnet_width,
            conventions=fields.conventions,
        )
        self._initialize_resnet()

    @torch.no_grad()
    def _initialize_resnet(self) -> None:
        """Initializes as Google does: every bottleneck begins as its shortcut."""
        for module in self.patch_embed.modules():
            if isinstance(module, StdConv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)
