"""The transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from vitfast.layers.attention import Attention
from vitfast.layers.drop_path import DropPath
from vitfast.layers.fusion import allow_in_place
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.layer_scale import LayerScale
from vitfast.layers.mlp import GatedMlp, GeluVariant, Mlp
from vitfast.layers.rotary import RotaryTables
from vitfast.layers.stored_result import ResidualAdd


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al., 2021, eqs. 2 and 3): x += attn(norm(x)); x += mlp(norm(x)).

    Both residual additions are fused: the first with the LayerNorm after it, the second, where nothing scales or drops
    the branch, with the MLP before it.

    Args:
        dim, num_heads, qkv_bias, key_bias, attention_drop_rate: as in ``Attention``.
        mlp_dim, gelu: as in ``Mlp``.
        gated_mlp: whether the MLP is a ``GatedMlp``, which has no GELU.
        attention_norm: whether a LayerNorm precedes the attention's output projection.
        mlp_norm: whether a LayerNorm precedes the last layer of a ``GatedMlp``.
        layer_scale: initial value of a ``LayerScale`` after each branch; 0 for none.
        layer_norm_eps: epsilon of all LayerNorms.
        is_rotary: whether ``forward`` is given rotary tables.
        drop_rate: dropout of the attention projection and within the MLP.
        drop_path: stochastic depth rate of both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        qkv_bias: bool = True,
        key_bias: bool = True,
        layer_norm_eps: float = 1e-6,
        gelu: GeluVariant = "erf",
        gated_mlp: bool = False,
        attention_norm: bool = False,
        mlp_norm: bool = False,
        layer_scale: float = 0.0,
        is_rotary: bool = False,
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.is_rotary = is_rotary
        self.norm1 = LayerNorm(dim, layer_norm_eps, feeds_linear=True)
        self.attn = Attention(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            key_bias=key_bias,
            norm_eps=layer_norm_eps if attention_norm else None,
            drop_rate=drop_rate,
            attention_drop_rate=attention_drop_rate,
        )
        self.norm2 = LayerNorm(dim, layer_norm_eps, feeds_linear=True)
        self.mlp: Mlp | GatedMlp
        if gated_mlp:
            self.mlp = GatedMlp(dim, mlp_dim, norm_eps=layer_norm_eps if mlp_norm else None, drop_rate=drop_rate)
        else:
            self.mlp = Mlp(dim, mlp_dim, gelu=gelu, drop_rate=drop_rate)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.add = ResidualAdd()

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """Transforms the residual stream ``x`` ``[B, N, C]``, with q and k rotated by ``rotary``; ``[B, N, C]``."""
        normalized = allow_in_place(self.norm1(x), self.norm1, self.attn, "qkv")
        attended = self.attn(normalized) if rotary is None else self.attn(normalized, rotary)
        x, normalized = self.add.add_and_normalize(x, self.drop_path(self.ls1(attended)), self.norm2)
        normalized = allow_in_place(normalized, self.norm2, self.mlp, "fc1")
        if self.drop_path.active or not isinstance(self.ls2, nn.Identity):
            return self.add(x, self.drop_path(self.ls2(self.mlp(normalized))))
        return self.add.add_mlp(x, normalized, self.mlp)
