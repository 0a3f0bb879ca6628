"""The performer layer of the tokens-to-token module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.performer_attention import performer_attention
from vitfast.layers.residual_add import ResidualAdd


class TokenPerformer(nn.Module):
    """Mixes and narrows tokens: performer attention with one head, then an MLP (Yuan et al., 2021, section 3.1).

    The residual around the attention is ``v``, because the input is wider than the output. Parameter names and the
    order k, q, v are those of the original code.

    Args:
        dim: channels C of the input.
        token_dim: channels D of the output.
        layer_norm_eps: epsilon of both LayerNorms.
        drop_rate: dropout of the attention projection and of the MLP; 0.1 in the original code.
        feature_ratio: random features over ``token_dim``.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        *,
        layer_norm_eps: float = 1e-5,
        drop_rate: float = 0.1,
        feature_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        num_features = int(token_dim * feature_ratio)
        self.norm1 = LayerNorm(dim, layer_norm_eps)
        self.kqv = nn.Linear(dim, 3 * token_dim)
        self.w = nn.Parameter(torch.empty(num_features, token_dim), requires_grad=False)
        self.proj = nn.Linear(token_dim, token_dim)
        self.drop = nn.Dropout(drop_rate)
        self.norm2 = LayerNorm(token_dim, layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(token_dim, token_dim), nn.GELU(), nn.Linear(token_dim, token_dim), nn.Dropout(drop_rate)
        )
        self.add = ResidualAdd()
        nn.init.orthogonal_(self.w, gain=math.sqrt(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens ``x`` ``[B, N, C]`` to ``[B, N, D]``."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        attended = self.drop(self.proj(performer_attention(q, k, v, self.w)))
        x, normalized = self.add.add_and_normalize(v, attended, self.norm2)
        return self.add(x, self.mlp(normalized))
