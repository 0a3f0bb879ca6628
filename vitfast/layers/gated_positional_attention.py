"""Gated positional self-attention, the attention of ConViT."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.layers.fusion import may_fuse
from vitfast.layers.positional_attention import attend_by_position, positional_map, positional_probabilities
from vitfast.ops.autocast import keep_float32
from vitfast.ops.gated_positional_attention import has_gated_kernel


class GatedPositionalAttention(nn.Module):
    """Self-attention in which each head blends content with position (GPSA; d'Ascoli et al., 2021, eq. 7).

    With A the softmax of the scaled products of queries and keys, P the positional probabilities of
    ``positional_attention.py`` and g = sigmoid(``gating_param``) of a head, the definition is

        attention = (1 - g) A + g P, divided by its row sums;   out = attention · v

    The rows of A and P sum to 1, so those of the blend sum to (1 - g) + g = 1 for any parameters: except for rounding,
    the division changes neither values nor gradients and is omitted. The rest is linear in A and P,

        out = (1 - g) (A v) + g (P v)

    so a fused attention operator computes A v, and P v is cheap. Dropout needs one mask for the blend; only then, in
    training, is the blend materialized. Without gradients, the operator ``gated_positional_attention`` computes the
    whole layer on a GPU if its kernel is active.

    ``pos_proj`` holds the parameters of P, which are read directly: hooks on it are not called.

    Args:
        dim, num_heads, qkv_bias, drop_rate, attention_drop_rate: as in ``Attention``.
        locality_dim: number of repetitions of each of the three positional features, see ``positional_probabilities``.
    """

    attend: Callable[..., Any] = staticmethod(ops.attention_packed)  # replaceable as in ``Attention``

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
        locality_dim: int = 1,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_drop_rate = attention_drop_rate
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(3 * locality_dim, num_heads)
        self.proj_drop = nn.Dropout(drop_rate)
        self.gating_param = nn.Parameter(torch.ones(num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Attends over a square grid of patches ``x`` ``[B, N, C]``, row by row; returns ``[B, N, C]``.

        Raises:
            ValueError: N is not a square number.
        """
        grid_size = math.isqrt(x.shape[1])
        if grid_size**2 != x.shape[1]:
            raise ValueError(f"x must hold a square grid of patches, [B, G * G, C], got shape {list(x.shape)}")
        qkv_BN3HD = self._project(x).unflatten(-1, (3, self.num_heads, -1))
        with keep_float32(qkv_BN3HD):
            out_BNHD = self._attend(qkv_BN3HD, grid_size)
        return self.proj_drop(self.proj(out_BNHD.flatten(-2)))

    def blend(self, content_BHNN: Tensor) -> Tensor:
        """Blends the content attention ``[B, H, N, N]`` with the positional attention."""
        positional_HNN = positional_map(self._positional_probabilities(math.isqrt(content_BHNN.shape[-1])))
        gate_H11 = torch.sigmoid(self.gating_param)[:, None, None].to(content_BHNN.dtype)
        return torch.lerp(content_BHNN, positional_HNN.to(content_BHNN.dtype), gate_H11)

    @torch.no_grad()
    def initialize_locality(self, strength: float) -> None:
        """Initializes the layer as a convolution: values pass unchanged, each head attends to one offset.

        The first k² heads, k = floor(sqrt(H)), attend to the offsets of a k x k kernel, x given by the quotient and y
        by the remainder of the head's index: score = -strength · |offset - the head's offset|², up to a constant. With
        an even k the offsets are half-integers, and four patches share the maximum. The weights of the other heads are
        multiplied by the strength.

        Args:
            strength: the paper's locality strength α.
        """
        nn.init.eye_(self.v.weight)
        kernel_size = math.isqrt(self.num_heads)
        center = (kernel_size - 1) / 2
        features_H3L = self.pos_proj.weight.unflatten(1, (3, -1))
        for head in range(kernel_size**2):
            features_H3L[head, 0] = 2 * (head // kernel_size - center)
            features_H3L[head, 1] = 2 * (head % kernel_size - center)
            features_H3L[head, 2] = -1.0
        self.pos_proj.weight *= strength

    def _has_kernel(self, qkv_BN3HD: Tensor) -> bool:
        """Whether one operator computes the attention: no gradient is needed, and ``attend`` was not replaced.

        The CPU uses the separable form: the operator is 5 to 18 % faster for eight images of ConViT-S and 4 to 9 %
        slower for one, mainly because of the outer product of the map.
        """
        if not qkv_BN3HD.is_cuda:
            return False
        parameters = (self.gating_param, self.pos_proj.weight, self.pos_proj.bias)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (qkv_BN3HD, *parameters)):
            return False
        _, tokens, _, _, head_dim = qkv_BN3HD.shape
        is_own = self.attend is ops.attention_packed
        return is_own and has_gated_kernel(qkv_BN3HD.device, qkv_BN3HD.dtype, tokens, head_dim)

    def _positional_probabilities(self, grid_size: int) -> Tensor:
        return positional_probabilities(self.pos_proj.weight, self.pos_proj.bias, grid_size)

    def _project(self, x: Tensor) -> Tensor:
        """Computes q, k and v ``[B, N, 3 * C]``, in one GEMM if ``may_fuse``."""
        if not may_fuse(self.qk, self.v):
            return torch.cat([self.qk(x), self.v(x)], dim=-1)
        # One GEMM with 3 C columns saves 4 % of the model's time over two; concatenating the weights is cheap.
        bias = None if self.qk.bias is None else torch.cat([self.qk.bias, self.v.bias])
        return F.linear(x, torch.cat([self.qk.weight, self.v.weight]), bias)

    def _attend(self, qkv_BN3HD: Tensor, grid_size: int) -> Tensor:
        if self.training and self.attention_drop_rate:
            return self._attend_with_dropout(*qkv_BN3HD.permute(2, 0, 3, 1, 4))
        if self._has_kernel(qkv_BN3HD):
            positional_HNN = positional_map(self._positional_probabilities(grid_size)).to(qkv_BN3HD.dtype)
            return ops.gated_positional_attention(qkv_BN3HD, positional_HNN, torch.sigmoid(self.gating_param))
        content_BNHD = self.attend(qkv_BN3HD)
        positional_BYXHD = attend_by_position(self._positional_probabilities(grid_size), qkv_BN3HD[:, :, 2])
        gate_H1 = torch.sigmoid(self.gating_param)[:, None].to(content_BNHD.dtype)
        content_BYXHD = content_BNHD.unflatten(1, (grid_size, grid_size))
        if content_BYXHD.requires_grad or positional_BYXHD.requires_grad or gate_H1.requires_grad:
            out_BYXHD = torch.lerp(content_BYXHD, positional_BYXHD, gate_H1)
        else:
            out_BYXHD = content_BYXHD.lerp_(positional_BYXHD, gate_H1)  # a new tensor would cost page faults
        return out_BYXHD.flatten(1, 2)

    def _attend_with_dropout(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        content_BHNN = ((q_BHND * q_BHND.shape[-1] ** -0.5) @ k_BHND.transpose(-2, -1)).softmax(-1)
        attention_BHNN = F.dropout(self.blend(content_BHNN), self.attention_drop_rate)
        return (attention_BHNN @ v_BHND).transpose(1, 2)
