"""Multi-head self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vitfast import ops
from vitfast.ops.autocast import keep_float32


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017), with q, k and v from one linear layer.

    Args:
        dim: number of channels C, a multiple of ``num_heads``.
        num_heads: number of heads H.
        qkv_bias: whether the q, k, v projection has a bias (myrtle-vision and vissl: no).
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
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_drop_rate = attention_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Attends over the tokens of ``x`` ``[B, N, C]``; returns ``[B, N, C]``."""
        return self._project(self._attended(x))

    def _attended(self, x: Tensor, **options: Any) -> Any:
        """Calls the operator; returns ``[B, N, H, D]`` and the outputs that ``options`` request."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, N, 3, H, D]
        with keep_float32(qkv):
            return self.attend(qkv, dropout_p=self.attention_drop_rate if self.training else 0.0, **options)

    def _project(self, out_BNHD: Tensor) -> Tensor:
        return self.proj_drop(self.proj(out_BNHD.flatten(-2)))
