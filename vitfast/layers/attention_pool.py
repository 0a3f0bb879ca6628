"""Attention pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import GeluVariant, Mlp
from vitfast.layers.stored_result import ResidualAdd
from vitfast.ops.attention import torch_attention


class AttentionPool(nn.Module):
    """Pools tokens by attention of one learned query, then x += mlp(norm(x)): the head of Zhai et al. (2022), SigLIP.

    Parameters have the names of timm's ``AttentionPoolLatent``.

    Args:
        dim: number of channels C, a multiple of ``num_heads``.
        num_heads: number of heads.
        mlp_dim, gelu: as in ``Mlp``.
        layer_norm_eps: epsilon of the LayerNorm.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, *, layer_norm_eps: float = 1e-6, gelu: GeluVariant = "erf"
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=dim**-0.5))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = LayerNorm(dim, layer_norm_eps)
        self.mlp = Mlp(dim, mlp_dim, gelu=gelu)
        self.add = ResidualAdd()

    def forward(self, x: Tensor) -> Tensor:
        """Pools ``x`` ``[B, N, C]``; returns ``[B, C]``."""
        q = self.q(self.latent.expand(x.shape[0], -1, -1)).unflatten(-1, (1, self.num_heads, -1))  # [B, 1, 1, H, D]
        kv = self.kv(x).unflatten(-1, (2, self.num_heads, -1))  # [B, N, 2, H, D]
        (q,), (k, v) = q.permute(2, 0, 3, 1, 4), kv.permute(2, 0, 3, 1, 4)
        pooled = self.proj(torch_attention(q, k, v).transpose(1, 2).flatten(2))  # [B, 1, C]
        return self.add.add_mlp(pooled, self.norm(pooled), self.mlp)[:, 0]
