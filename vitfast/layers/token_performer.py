"""The performer layer of the tokens-to-token module: attention in linear time by positive random features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.stored_result import ResidualAdd


class TokenPerformer(nn.Module):
    """Mixes and narrows tokens: performer attention with one head, then an MLP (Yuan et al., 2021, section 3.1).

    The residual around the attention is ``v``, because the input is wider than the output. Parameter names and the
    order k, q, v are those of the original code.

    Args:
        dim: channels C of the input.
        token_dim: channels D of the output.
        layer_norm_eps: epsilon of both LayerNorms.
        drop_rate: dropout of the attention projection and of the MLP; 0.1 in the original code.
    """

    def __init__(self, dim: int, token_dim: int, *, layer_norm_eps: float = 1e-5, drop_rate: float = 0.1) -> None:
        super().__init__()
        num_features = token_dim // 2
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


def performer_attention(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Approximates softmax attention in time linear in N (Choromanski et al., 2021, in the form of T2T-ViT).

    With the positive features ``phi(x)_m = exp(w_m x - |x|² / 2) / sqrt(M)``, the result of token t is

        ``phi(q_t) Σ_i phi(k_i)ᵀ v_i / (phi(q_t) Σ_i phi(k_i) + epsilon)``

    Evaluated literally in float16, the features and epsilon underflow to 0 / 0 (T2T-ViT issues 19, 65 and 69). Here
    each feature m of k is divided by its maximum over the tokens, ``exp(c_m)``, and q is multiplied by it; then the
    features of each q and epsilon are divided by the maximum ``exp(a)``, which cancels. The result is the same, no
    exponent is positive, and the denominator is at least 1. Runs in float32 under any autocast.

    ``q``, ``k``, ``v`` and the result are ``[B, N, D]``, ``projection`` is w ``[M, D]``, and ``epsilon`` is above 0.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        projection = projection.to(dtype)
        q_BNM, k_BNM = _exponents(q.to(dtype), projection), _exponents(k.to(dtype), projection)
        # detached: the result does not depend on either maximum
        k_max_B1M = k_BNM.detach().amax(dim=1, keepdim=True)
        q_BNM = q_BNM + k_max_B1M
        q_max_BN1 = q_BNM.detach().amax(dim=2, keepdim=True)
        q_BNM, k_BNM = (q_BNM - q_max_BN1).exp(), (k_BNM - k_max_B1M).exp()

        weighted_BND = q_BNM @ (k_BNM.transpose(1, 2) @ v.to(dtype))
        total_BN1 = q_BNM @ k_BNM.sum(dim=1).unsqueeze(-1)
        # times M, because the factors 1 / sqrt(M) of both features are left out; if it overflows, the result is zero
        log_epsilon = math.log(len(projection) * epsilon)
        epsilon_BN1 = (log_epsilon - q_max_BN1).exp()
        return (weighted_BND / (total_BN1 + epsilon_BN1)).to(v.dtype)


def _exponents(x: Tensor, projection: Tensor) -> Tensor:
    """Returns ``w_m x - |x|² / 2``, ``[B, N, M]``."""
    return x @ projection.T - x.square().sum(dim=-1, keepdim=True) / 2
