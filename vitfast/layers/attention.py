"""Multi-head self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.layers.fusion import may_fuse
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.rotary import RotaryTables
from vitfast.ops.autocast import keep_float32


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017), with q, k and v from one linear layer.

    Args:
        dim: number of channels C, a multiple of ``num_heads``.
        num_heads: number of heads H.
        qkv_bias: whether the q, k, v projection has a bias (myrtle-vision and vissl: no).
        key_bias: whether this bias includes k's (EVA-02 and DINOv3: no).
        norm_eps: epsilon of a LayerNorm before the output projection; None for no LayerNorm.
        drop_rate: dropout of the output projection's result.
        attention_drop_rate: dropout of the softmax probabilities.
    """

    # the operator; vitfast.inference.attention_maps replaces it in an instance to keep the logits
    attend: Callable[..., Any] = staticmethod(ops.attention_packed)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        key_bias: bool = True,
        norm_eps: float | None = None,
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_drop_rate = attention_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias and key_bias)
        has_two_biases = qkv_bias and not key_bias
        self.q_bias = nn.Parameter(torch.zeros(dim)) if has_two_biases else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if has_two_biases else None
        self.norm = nn.Identity() if norm_eps is None else LayerNorm(dim, norm_eps)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    @property
    def bias(self) -> Tensor | None:
        """The bias ``[3 * C]`` of q, k and v where k has none, else None: that of ``qkv`` applies."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """Attends over the tokens of ``x`` ``[B, N, C]``, with q and k rotated by ``rotary``; returns ``[B, N, C]``."""
        return self._project(self._attended(x, rotary))

    def _attended(self, x: Tensor, rotary: RotaryTables | None = None, **options: Any) -> Any:
        """Calls the operator; returns ``[B, N, H, D]`` and the outputs that ``options`` request."""
        qkv = self._projected(x).unflatten(-1, (3, self.num_heads, -1))  # [B, N, 3, H, D]
        if rotary is not None:
            rotated = rotary.rotate(qkv[:, :, :2].flatten(2, 3)).unflatten(2, (2, -1))  # q and k
            qkv = torch.cat([rotated, qkv[:, :, 2:]], dim=2)
        with keep_float32(qkv):
            return self.attend(qkv, dropout_p=self.attention_drop_rate if self.training else 0.0, **options)

    def _projected(self, x: Tensor) -> Tensor:
        """Projects ``x`` to q, k and v, ``[B, N, 3 * C]``."""
        bias = self.bias
        if bias is None:
            return self.qkv(x)
        if may_fuse(self.qkv):
            return F.linear(x, self.qkv.weight, bias)
        qkv: Tensor = self.qkv(x)
        return qkv + bias.to(qkv.dtype)

    def _project(self, out_BNHD: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.norm(out_BNHD.flatten(-2))))
