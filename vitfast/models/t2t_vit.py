"""The Tokens-to-Token Vision Transformer: fields, architectures and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.layers import AddPositions, JoinTokens, LayerNorm, TokensToToken, sinusoidal_positions
from vitfast.layers.patch_embed import check_images
from vitfast.layers.tokens_to_token import TokensType, tokens_to_token_grid_size
from vitfast.models.model_fields import TransformerFields, check_field
from vitfast.models.transformer import TransformerModel, initialize_linear, transformer_blocks


@dataclass(frozen=True)
class T2TViTFields(TransformerFields):
    """The fields of a T2T-ViT; the defaults are those of the original code (Yuan et al., 2021).

    Attributes:
        tokens_type: the attention of the tokens-to-token module: ``"performer"``, or ``"transformer"`` (t2t_vit_t_14).
        token_dim: channels of the tokens inside that module.
        token_drop_rate: dropout inside its performers: 0.1 in the original code, independent of the other rates.
        patch_size: height and width in pixels of the patches of its first soft split. The other two halve the grid.
        patch_stride: stride of the first soft split.
        patch_padding: padding of the first soft split.
    """

    embed_dim: int = 384
    depth: int = 14
    num_heads: int = 6
    mlp_ratio: float = 3.0
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = False
    tokens_type: TokensType = "performer"
    token_dim: int = 64
    token_drop_rate: float = 0.1
    patch_size: int = 7
    patch_stride: int = 4
    patch_padding: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "patch_size", "patch_stride")
        self._check_at_least(2, "token_dim")
        self._check_at_least(0, "patch_padding")
        self._check_rates("token_drop_rate")
        smallest = self.patch_size - 2 * self.patch_padding
        check_field(self.grid_size >= 1, "img_size", self.img_size, f"must be at least {smallest}, to hold a patch")

    @property
    def grid_size(self) -> int:
        """Tokens along a side."""
        return tokens_to_token_grid_size(self.img_size, self.patch_size, self.patch_stride, self.patch_padding)


# by depth, after which the models are named
T2T_VIT_SIZES: dict[int, dict[str, Any]] = {
    7: {"depth": 7, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0},
    10: {"depth": 10, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0},
    12: {"depth": 12, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0},
    14: {"depth": 14, "embed_dim": 384, "num_heads": 6, "mlp_ratio": 3.0},
    19: {"depth": 19, "embed_dim": 448, "num_heads": 7, "mlp_ratio": 3.0},
    24: {"depth": 24, "embed_dim": 512, "num_heads": 8, "mlp_ratio": 3.0},
}

T2T_VIT_ARCHITECTURES: dict[str, T2TViTFields] = {
    **{f"t2t_vit_{size}": T2TViTFields(**fields) for size, fields in T2T_VIT_SIZES.items()},
    **{f"t2t_vit_t_{size}": T2TViTFields(tokens_type="transformer", **T2T_VIT_SIZES[size]) for size in (14, 19, 24)},
}

# the Dynamic Vision Transformer's code capitalizes the names
T2T_VIT_ALIASES = {f"T{name[1:]}": name for name in T2T_VIT_ARCHITECTURES}


class T2TViT(TransformerModel):
    """T2T-ViT (Yuan et al., 2021), with the original code's parameter names.

    The position embeddings are fixed sinusoids, in a parameter without gradient: checkpoints store them, and they are
    resized for other image sizes. Attention logits are scaled by the inverse root of the head dimension.
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
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        initialize_linear(*self.modules())

    def forward_head(self, tokens: Tensor) -> Tensor:
        return self.head(tokens[:, 0])

    def embed(self, images: Tensor) -> Tensor:
        check_images(images, self.in_chans, self.img_size)
        tokens = self.join_tokens(self.tokens_to_token(images), before=self.cls_token)
        return self.pos_drop(self.add_positions(tokens, positions=self.pos_embed))
