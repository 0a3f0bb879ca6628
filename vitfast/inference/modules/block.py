"""Transformer blocks of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.modules.linear import InferenceLinear, describe_gemms
from vitfast.inference.modules.norm import InferenceNorm, NormLinear


class InferenceMlp(nn.Module):
    """``fc2(fc1(norm(x)), residual)``; the norm is optional."""

    def __init__(self, norm: InferenceNorm | None, fc1: InferenceLinear, fc2: InferenceLinear) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from ``x`` ``[..., K]`` and ``residual`` ``[..., C]``, or None for zeros."""
        return self.after_norm(x if self.norm is None else self.norm(x), residual)

    def after_norm(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from an ``x`` that is already normalized."""
        return self.fc2(self.fc1(x), residual)


class InferenceBlock(nn.Module):
    """A pre-norm block, one operator after the other; ``name``: of the source module."""

    def __init__(
        self,
        name: str,
        qkv: NormLinear,
        attention: nn.Module,
        proj: InferenceLinear,
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

    @property
    def path(self) -> str:
        """What runs the block, for the report."""
        return f"{describe_gemms(self.qkv.linear, self.proj, self.mlp.fc1, self.mlp.fc2)}, separate attention"

    def forward(self, x: Tensor) -> Tensor:
        """Transforms the residual stream ``x`` ``[B, N, C]``; returns a new tensor."""
        x = x.to(self.dtype).contiguous()
        x = self.proj(self.attention(self.qkv(x)), x)
        return self.mlp(x, x)
