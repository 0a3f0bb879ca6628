"""Transformer blocks of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.ir import Activation
from vitfast.inference.modules.attention import FirstTokensAttention, GatedAttention, InferenceAttention
from vitfast.inference.modules.linear import InferenceLinear, describe_gemms
from vitfast.inference.modules.norm import InferenceNorm, NormLinear


class InferenceMlp(nn.Module):
    """``residual + scale * fc2(activation(fc1(norm(x))))``.

    Args:
        norm: before the MLP, or None.
        fc1: first layer.
        activation: between the layers.
        fc2: second layer.
        scale: LayerScale ``[C]``, or None.
    """

    scale: Tensor | None

    def __init__(
        self,
        norm: InferenceNorm | None,
        fc1: InferenceLinear,
        activation: Activation,
        fc2: InferenceLinear,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.fc2 = fc2
        self.activation: Activation = activation
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from ``x`` ``[..., K]`` and ``residual`` ``[..., C]``, or None for zeros."""
        return self.after_norm(x if self.norm is None else self.norm(x), residual)

    def after_norm(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from an ``x`` that is already normalized."""
        out: Tensor = self.fc2(self.fc1(x, self.activation), scale=self.scale, residual=residual)
        return out


class InferenceBlock(nn.Module):
    """A pre-norm block, one operator after the other.

    Args:
        name: name of the source module.
        qkv: first LayerNorm and the projection to q, k and v.
        attention: between the projections.
        proj: output projection.
        scale1: LayerScale ``[C]`` of the attention, or None.
        mlp: the MLP with its LayerNorm.
        dtype: dtype of the tokens.
    """

    scale1: Tensor | None

    def __init__(
        self,
        name: str,
        qkv: NormLinear,
        attention: InferenceAttention | GatedAttention,
        proj: InferenceLinear,
        scale1: Tensor | None,
        mlp: InferenceMlp,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.name = name
        self.qkv = qkv
        self.attention = attention
        self.proj = proj
        self.mlp = mlp
        self.dtype = dtype
        self.register_buffer("scale1", scale1)

    @property
    def path(self) -> str:
        """What runs the block, for the report."""
        return f"{describe_gemms(self.qkv.linear, self.proj, self.mlp.fc1, self.mlp.fc2)}, separate attention"

    def forward(self, x: Tensor) -> Tensor:
        """Transforms the residual stream ``x`` ``[B, N, C]``; returns a new tensor."""
        x = x.to(self.dtype).contiguous()
        x = self.proj(self.attention(self.qkv(x)), scale=self.scale1, residual=x)
        out: Tensor = self.mlp(x, x)
        return out


class LastBlock(nn.Module):
    """The last block of a model whose head reads the first tokens only.

    Keys and values are computed for all tokens; queries, output projection and MLP only for those that are read. With
    ``mlp_ratio`` 4 this saves five sixths of the block's GEMMs.

    Args:
        name: name of the source module.
        q: first LayerNorm and the projection to q.
        kv: the same LayerNorm and the projection to k and v.
        attention: between the projections.
        proj: output projection.
        scale1: LayerScale ``[C]`` of the attention, or None.
        mlp: the MLP with its LayerNorm.
        dtype: dtype of the tokens.
        tokens: number of tokens that are read.
    """

    scale1: Tensor | None

    def __init__(
        self,
        name: str,
        q: NormLinear,
        kv: NormLinear,
        attention: FirstTokensAttention,
        proj: InferenceLinear,
        scale1: Tensor | None,
        mlp: InferenceMlp,
        dtype: torch.dtype,
        tokens: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.q = q
        self.kv = kv
        self.attention = attention
        self.proj = proj
        self.mlp = mlp
        self.dtype = dtype
        self.tokens = tokens
        self.register_buffer("scale1", scale1)

    @property
    def path(self) -> str:
        """What runs the block, for the report."""
        gemms = describe_gemms(self.q.linear, self.kv.linear, self.proj, self.mlp.fc1, self.mlp.fc2)
        return f"{gemms}, first {self.tokens} token{'s' if self.tokens > 1 else ''} only"

    def forward(self, x: Tensor) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``; returns the first tokens ``[B, tokens, C]``."""
        return self.first_tokens(x, self.tokens)

    def first_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``; returns the first ``tokens`` of the result."""
        x = x.to(self.dtype).contiguous()  # a fallback block may return any dtype and strides
        first = x[:, :tokens]
        attended = self.attention(self.q(first), self.kv(x))
        first = self.proj(attended, scale=self.scale1, residual=first.contiguous())
        out: Tensor = self.mlp(first, first)
        return out
