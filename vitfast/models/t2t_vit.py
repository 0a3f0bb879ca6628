"""The Tokens-to-Token Vision Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.layers import AddPositions, JoinTokens, LayerNorm, TokensToToken, sinusoidal_positions
from vitfast.layers.patch_embed import check_images
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.resize_positions import resize_positions
from vitfast.models.t2t_vit_fields import T2TViTFields
from vitfast.models.transformer_blocks import transformer_blocks
from vitfast.models.vit import initialize_linear


class T2TViT(ImageModel):
    """T2T-ViT (Yuan et al., 2021), with the original code's parameter names: its weights load as they are.

    The position embeddings are fixed sinusoids. They are a parameter without gradient, because they are saved, and
    resized for other image sizes. The logits are scaled by the inverse root of the head dimension.

    Args:
        model_name: as in ``ImageModel``.
        fields: everything that defines it.
    """

    fields: T2TViTFields

    def __init__(self, model_name: str, fields: T2TViTFields) -> None:
        super().__init__(model_name, fields)
        dim, eps = fields.embed_dim, fields.layer_norm_eps
        self.tokens_to_token = TokensToToken(
            fields.patch_size,
            fields.patch_stride,
            fields.patch_padding,
            fields.in_chans,
            dim,
            token_dim=fields.token_dim,
            tokens_type=fields.tokens_type,
            layer_norm_eps=eps,
            drop_rate=fields.token_drop_rate,
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(sinusoidal_positions(1 + fields.grid_size**2, dim), requires_grad=False)
        self.join_tokens = JoinTokens()
        self.add_positions = AddPositions()
        self.pos_drop = nn.Dropout(fields.drop_rate)
        self.blocks = transformer_blocks(fields)
        self.norm = LayerNorm(dim, eps)
        self.head = nn.Linear(dim, fields.num_classes) if fields.num_classes else nn.Identity()
        self._initialize()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that, beside the one-dimensional ones, take no weight decay."""
        return {"cls_token", "pos_embed"}

    def resize_state(
        self, state: dict[str, Tensor], position_interpolation: PositionInterpolation | None = None
    ) -> list[str]:
        """Resamples the position embeddings of another image size, by default as the field says."""
        interpolation = position_interpolation or self.fields.position_interpolation
        return resize_positions(state, "pos_embed", self.pos_embed, interpolation)

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.

        Returns:
            Logits ``[B, num_classes]``, or the class token's channels ``[B, C]`` of a model without a head.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images have another shape.
        """
        return self.head(self.forward_features(images)[:, 0])

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the last block and ``norm``, ``[B, N, C]``, the class token first."""
        return self.norm(self.blocks(self.embed(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block."""
        check_images(images, self.in_chans, self.img_size)
        tokens = self.join_tokens(self.cls_token, self.tokens_to_token(images))
        return self.pos_drop(self.add_positions(tokens, self.pos_embed))

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initializes as the original code does."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialize_linear(module)
