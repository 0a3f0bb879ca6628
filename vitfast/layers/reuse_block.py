"""The transformer block of the Dynamic Vision Transformer, which reuses features and relations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.layers.drop_path import DropPath
from vitfast.layers.grid_upsample import GridUpsample
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.relation_reuse import RelationAttention
from vitfast.layers.stored_result import ResidualAdd, StoredFeatures


class FeatureReuse(nn.Module):
    """Condenses the features of the previous exit and resamples them to a finer grid (Wang et al., 2021).

    Args:
        dim, hidden_dim, out_dim: as in ``Mlp``.
        upsample: between the grids of the two exits; all blocks of an exit may share it.
        layer_norm_eps: epsilon of the LayerNorm.
        drop_rate: dropout within the MLP.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        out_dim: int,
        upsample: GridUpsample,
        *,
        layer_norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.norm = LayerNorm(dim, layer_norm_eps)
        self.mlp = Mlp(dim, hidden_dim, out_dim=out_dim, drop_rate=drop_rate)
        self.upsample = upsample
        self.result = StoredFeatures()

    def forward(self, features: Tensor) -> Tensor:
        """Maps features ``[B, 1 + g * g, C]`` to ``[B, 1 + G * G, out_dim]``; those of the class token are zero."""
        return self.result(self.upsample.features(self.mlp(self.norm(features))))


class ReuseBlock(nn.Module):
    """``Block`` with reused relations in the attention and reused features in the MLP's input.

    x += attn(norm1(x), relations); x += mlp(norm2([x, feature_reuse(features)])), where [ , ] concatenates channels.

    Args:
        feature_reuse: condenses the previous exit's features; None to reuse none.
        dim, num_heads, mlp_dim, qkv_bias, layer_norm_eps, drop_rate, attention_drop_rate, drop_path: as in ``Block``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        feature_reuse: FeatureReuse | None = None,
        qkv_bias: bool = True,
        layer_norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        wide_dim = dim if feature_reuse is None else dim + feature_reuse.out_dim
        self.norm1 = LayerNorm(dim, layer_norm_eps, feeds_linear=True)
        self.attn = RelationAttention(
            dim, num_heads, qkv_bias=qkv_bias, drop_rate=drop_rate, attention_drop_rate=attention_drop_rate
        )
        self.feature_reuse = feature_reuse
        self.norm2 = LayerNorm(wide_dim, layer_norm_eps, feeds_linear=True)
        self.mlp = Mlp(wide_dim, mlp_dim, out_dim=dim, drop_rate=drop_rate)
        self.drop_path = DropPath(drop_path)
        self.add = ResidualAdd()

    def forward(
        self,
        x: Tensor,
        *,
        features: Tensor | None = None,
        relations: Tensor | None = None,
        return_relations: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Transforms the residual stream.

        Args:
            x: ``[B, N, C]``.
            features: output of the previous exit's last block, ``[B, n, C]``; read by a block with ``feature_reuse``.
            relations: ``[B, H, N, N]``, added to the attention's logits; or None.
            return_relations: also return the attention's logits.

        Returns:
            ``[B, N, C]``, and the logits ``[B, H, N, N]`` or None.
        """
        attended, logits = self.attn(self.norm1(x), relations, return_relations=return_relations)
        if self.feature_reuse is None:
            x, normalized = self.add.add_and_normalize(x, self.drop_path(attended), self.norm2)
        else:
            x = self.add(x, self.drop_path(attended))
            normalized = self.norm2(torch.cat([x, self.feature_reuse(features)], dim=2))
        if self.drop_path.active:
            return self.add(x, self.drop_path(self.mlp(normalized))), logits
        return self.add.add_mlp(x, normalized, self.mlp), logits
