"""Attention in linear time, by positive random features."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def performer_attention(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Computes softmax attention approximately, in time linear in N (Choromanski et al., 2021, as T2T-ViT has it).

    With the features ``phi(x)_m = exp(w_m x - |x|² / 2) / sqrt(M)``, which are positive, the result of token t is

        ``phi(q_t) Σ_i phi(k_i)ᵀ v_i / (phi(q_t) Σ_i phi(k_i) + epsilon)``

    Evaluated literally in float16, the features and epsilon underflow to 0 / 0 (T2T-ViT issues 19, 65 and 69). Here
    each feature m of k is divided by its maximum over the tokens, ``exp(c_m)``, which q takes over; then the features
    of each q by their maximum, ``exp(a)``, which cancels but for epsilon, to be divided by it as well. The result is
    the same, no exponent is positive, and the denominator is at least 1. Under any autocast this runs in float32.

    Args:
        q: ``[B, N, D]``.
        k: ``[B, N, D]``.
        v: ``[B, N, D]``.
        projection: w, ``[M, D]``.
        epsilon: added to the denominator, above 0; 1e-8 in T2T-ViT.

    Returns:
        ``[B, N, D]`` in the type of ``v``.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        projection = projection.to(dtype)
        q_BNM, k_BNM = _exponents(q.to(dtype), projection), _exponents(k.to(dtype), projection)
        # Without gradients: the result does not depend on either maximum.
        k_max_B1M = k_BNM.detach().amax(dim=1, keepdim=True)
        q_BNM = q_BNM + k_max_B1M
        q_max_BN1 = q_BNM.detach().amax(dim=2, keepdim=True)
        q_BNM, k_BNM = (q_BNM - q_max_BN1).exp(), (k_BNM - k_max_B1M).exp()

        weighted_BND = q_BNM @ (k_BNM.transpose(1, 2) @ v.to(dtype))
        total_BN1 = q_BNM @ k_BNM.sum(dim=1).unsqueeze(-1)
        # Times M, because the factors 1 / sqrt(M) of both features are left out. Where it overflows to infinity, the
        # result is zero, as it should be.
        log_epsilon = math.log(len(projection) * epsilon)
        epsilon_BN1 = (log_epsilon - q_max_BN1).exp()
        return (weighted_BND / (total_BN1 + epsilon_BN1)).to(v.dtype)


def _exponents(x: Tensor, projection: Tensor) -> Tensor:
    """Returns ``w_m x - |x|² / 2``, ``[B, N, M]``."""
    return x @ projection.T - x.square().sum(dim=-1, keepdim=True) / 2
