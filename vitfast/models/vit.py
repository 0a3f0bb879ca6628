"""The Vision Transformer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.layers import Block, LayerNorm, PatchEmbed
from vitfast.models.vit_fields import ViTFields


class VisionTransformer(nn.Module):
    """The Vision Transformer of Dosovitskiy et al. (2021), with timm's parameter names.

    Args:
        model_name: the name under which ``vitfast.create_model`` builds this model; with ``model_fields`` it is all
            that a checkpoint needs to say.
        fields: everything that defines it.
    """

    def __init__(self, model_name: str, fields: ViTFields) -> None:
        super().__init__()
        self.model_name = model_name
        self.fields = fields
        dim, eps = fields.embed_dim, fields.layer_norm_eps
        num_positions = fields.num_prefix_positions + fields.grid_size**2

        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, dim))
        self.patch_embed = PatchEmbed(
            fields.img_size, fields.patch_size, fields.in_chans, dim, patch_order=fields.patch_order
        )
        self.pos_drop = nn.Dropout(fields.drop_rate)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    fields.num_heads,
                    fields.mlp_dim,
                    qkv_bias=fields.qkv_bias,
                    layer_norm_eps=eps,
                    gelu=fields.gelu,
                    drop_rate=fields.drop_rate,
                    attention_drop_rate=fields.attention_drop_rate,
                    drop_path=fields.drop_path * index / max(fields.depth - 1, 1),
                )
                for index in range(fields.depth)
            )
        )
        norm_in_head = fields.head_type == "norm_linear"
        self.norm = nn.Identity() if norm_in_head else LayerNorm(dim, eps)
        self.fc_norm = LayerNorm(dim, eps) if norm_in_head else nn.Identity()
        self.head = nn.Linear(dim, fields.num_classes) if fields.num_classes else nn.Identity()
        self._initialize()

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields as JSON can hold them: ``create_model(model_name, **model_fields)`` builds the same model."""
        return asdict(self.fields)

    @property
    def num_classes(self) -> int:
        """Outputs of each head."""
        return self.fields.num_classes

    @property
    def img_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.fields.img_size

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return self.fields.in_chans

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that, beside the one-dimensional ones, take no weight decay."""
        return {"cls_token", "pos_embed"}

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.

        Returns:
            Logits ``[B, num_classes]``, or the pooled channels ``[B, C]`` of a model without a head.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images have another shape.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the last block and ``norm``, ``[B, N, C]``."""
        return self.norm(self.blocks(self.embed(images)))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Computes the logits ``[B, num_classes]`` from ``forward_features``'s tokens ``[B, N, C]``."""
        return self.head(self.fc_norm(self.pool(tokens)))

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block: class token and patches, with positions."""
        return self.pos_drop(self.add_positions(self.cls_token, self.patch_embed(images)))

    def add_positions(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """Puts ``prefix`` ``[1, T, C]`` before ``patches`` ``[B, N, C]`` and adds the positions: ``[B, T + N, C]``."""
        return torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed

    def pool(self, tokens: Tensor) -> Tensor:
        """Reduces the tokens ``[B, N, C]`` to what the head reads, ``[B, C]``."""
        return tokens.mean(dim=1) if self.fields.pooling == "mean" else tokens[:, 0]

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initializes as timm does; the patch projection keeps torch's default."""
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in (*self.blocks.modules(), self.head):
            if isinstance(module, nn.Linear):
                initialize_linear(module)


def initialize_linear(linear: nn.Linear) -> None:
    """Initializes a linear layer as timm's ViT does: truncated normal of deviation 0.02, no bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
