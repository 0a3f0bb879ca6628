"""The transformer layer of the tokens-to-token module."""

from __future__ import annotations

from torch import Tensor, nn

from vitfast import ops
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.stored_result import ResidualAdd
from vitfast.ops.autocast import keep_float32


class TokenAttention(nn.Module):
    """Self-attention with one head that narrows the tokens; returns ``v + proj(attention)``.

    Args:
        dim: channels C of the input. The logits are divided by its square root, as in the original code, though q and k
            have ``token_dim`` channels.
        token_dim: channels D of the output.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * token_dim, bias=False)
        self.proj = nn.Linear(token_dim, token_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attends over the tokens of ``x`` ``[B, N, C]``; returns both terms ``[B, N, D]`` before the addition."""
        qkv = self.qkv(x).unflatten(-1, (3, 1, -1))  # [B, N, 3, 1, D]
        with keep_float32(qkv):
            out = ops.attention_packed(qkv, scale=self.scale)  # [B, N, 1, D]
        return self.proj(out.squeeze(2)), qkv[:, :, 2, 0]


class TokenTransformer(nn.Module):
    """Mixes and narrows tokens: softmax attention with one head, then an MLP (Yuan et al., 2021, section 3.1).

    Parameter names are those of the original code.

    Args:
        dim: channels C of the input.
        token_dim: channels D of the output, and width of the MLP.
        layer_norm_eps: epsilon of both LayerNorms.
    """

    def __init__(self, dim: int, token_dim: int, *, layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, layer_norm_eps)
        self.attn = TokenAttention(dim, token_dim)
        self.norm2 = LayerNorm(token_dim, layer_norm_eps)
        self.mlp = Mlp(token_dim, token_dim)
        self.add = ResidualAdd()

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens ``x`` ``[B, N, C]`` to ``[B, N, D]``."""
        attended, v = self.attn(self.norm1(x))
        x, normalized = self.add.add_and_normalize(v, attended, self.norm2)
        return self.add.add_mlp(x, normalized, self.mlp)
