"""What defines a T2T-ViT."""

from __future__ import annotations

from dataclasses import dataclass

from vitfast.layers.tokens_to_token import TokensType, tokens_to_token_grid_size
from vitfast.models.field_checks import check_field
from vitfast.models.transformer_fields import TransformerFields


@dataclass(frozen=True)
class T2TViTFields(TransformerFields):
    """Every field of a T2T-ViT; the defaults are those of the original code (Yuan et al., 2021).

    Attributes:
        tokens_type: the attention of the tokens-to-token module: ``"performer"``, or ``"transformer"`` (t2t_vit_t_14).
        token_dim: channels of the tokens inside that module.
        token_drop_rate: dropout inside its performers: 0.1 in the original code, whatever the others are.
        patch_size: height and width in pixels of the patches of its first soft split. The two others halve the grid.
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
        for name in ("patch_size", "patch_stride"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check_field(self.token_dim >= 2, "token_dim", self.token_dim, "must be at least 2")
        check_field(self.patch_padding >= 0, "patch_padding", self.patch_padding, "must be at least 0")
        self._check_rate("token_drop_rate")
        smallest = self.patch_size - 2 * self.patch_padding
        check_field(self.grid_size >= 1, "img_size", self.img_size, f"must be at least {smallest}, to hold a patch")

    @property
    def grid_size(self) -> int:
        """Tokens along a side."""
        return tokens_to_token_grid_size(self.img_size, self.patch_size, self.patch_stride, self.patch_padding)
