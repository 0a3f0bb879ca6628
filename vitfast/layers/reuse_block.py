"""The transformer block of the Dynamic Vision Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.layers.drop_path import DropPath
from vitfast.layers.feature_reuse import FeatureReuse
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.relation_attention import RelationAttention
from vitfast.layers.residual_add import ResidualAdd


class ReuseBlock(nn.Module):
    """``Block``, with reused relations in the attention and reused features beside the MLP's input.

    x += attn(norm1(x), relations); x += mlp(norm2([x, feature_reuse(features)])), where [ , ] joins channels.

    Args:
        dim: number of channels C.
        num_heads: number of attention heads H.
        mlp_dim: hidden width of the MLP.
        feature_reuse: what condenses the previous exit's features, or None to reuse none.
        qkv_bias: whether the q, k, v projection has a bias.
        layer_norm_eps: epsilon of both LayerNorms.
        drop_rate: dropout of the attention projection and within the MLP.
        attention_drop_rate: dropout of the softmax probabilities.
        drop_path: stochastic depth rate of both branches.
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
        self.norm1 = LayerNorm(dim, layer_norm_eps)
        self.attn = RelationAttention(
            dim, num_heads, qkv_bias=qkv_bias, drop_rate=drop_rate, attention_drop_rate=attention_drop_rate
        )
        self.feature_reuse = feature_reuse
        self.norm2 = LayerNorm(wide_dim, layer_norm_eps)
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
            features: what the previous exit's last block gave, ``[B, n, C]``; read by a block with ``feature_reuse``.
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
