"""The Vision Transformer."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from vitfast.layers import AddPositions, JoinTokens, LayerNorm, PatchEmbed
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.resize_positions import resize_positions
from vitfast.models.transformer_blocks import transformer_blocks
from vitfast.models.vit_fields import ViTFields


class VisionTransformer(ImageModel):
    """The Vision Transformer of Dosovitskiy et al. (2021), with timm's parameter names.

    Args:
        model_name: as in ``ImageModel``.
        fields: everything that defines it.
    """

    fields: ViTFields

    def __init__(self, model_name: str, fields: ViTFields) -> None:
        super().__init__(model_name, fields)
        dim, eps = fields.embed_dim, fields.layer_norm_eps
        num_positions = fields.num_prefix_positions + fields.grid_size**2

        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, dim))
        self.patch_embed = PatchEmbed(
            fields.img_size, fields.patch_size, fields.in_chans, dim, patch_order=fields.patch_order
        )
        self.join_tokens = JoinTokens()
        self.add_positions = AddPositions()
        self.pos_drop = nn.Dropout(fields.drop_rate)
        self.blocks = transformer_blocks(fields, gelu=fields.gelu)
        norm_in_head = fields.head_type == "norm_linear"
        self.norm = nn.Identity() if norm_in_head else LayerNorm(dim, eps)
        self.fc_norm = LayerNorm(dim, eps) if norm_in_head else nn.Identity()
        hidden_dim = fields.head_hidden_dim if fields.num_classes else 0
        self.pre_logits = _tanh_layer(dim, hidden_dim) if hidden_dim else nn.Identity()
        self.head = nn.Linear(hidden_dim or dim, fields.num_classes) if fields.num_classes else nn.Identity()
        self._initialize()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that, beside the one-dimensional ones, take no weight decay."""
        return {"cls_token", "pos_embed"}

    def resize_state(
        self, state: dict[str, Tensor], position_interpolation: PositionInterpolation | None = None
    ) -> list[str]:
        """Resamples the position embeddings of another image size, by default as the field says."""
        return resize_positions(
            state,
            "pos_embed",
            self.pos_embed,
            position_interpolation or self.fields.position_interpolation,
            num_prefix_tokens=self.fields.num_prefix_positions,
        )

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
        return self.head(self.pre_logits(self.fc_norm(self.pool(tokens))))

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block: class token and patches, with positions."""
        tokens = self.join_tokens(self.cls_token, self.patch_embed(images))
        return self.pos_drop(self.add_positions(tokens, self.pos_embed))

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


def _tanh_layer(dim: int, hidden_dim: int) -> nn.Module:
    """Makes the hidden layer of a pre-training head, initialized as LeCun's (truncated normal, variance 1 / dim)."""
    linear = nn.Linear(dim, hidden_dim)
    nn.init.trunc_normal_(linear.weight, std=dim**-0.5)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(OrderedDict(fc=linear, act=nn.Tanh()))
