"""Transformer blocks of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.modules.linear import InferenceLinear, describe_gemms
from vitfast.inference.modules.norm import InferenceNorm
from vitfast.layers.rotary import RotaryTables


class InferenceMlp(nn.Module):
    """``fc2(fc1(norm(x)), residual)``, or with a gate ``fc2(gate(norm(x)) * fc1(norm(x)), residual)``.

    The norm is optional; ``fc2`` may have one of its own.
    """

    def __init__(
        self,
        norm: InferenceNorm | None,
        fc1: InferenceLinear,
        fc2: InferenceLinear,
        gate: InferenceLinear | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.fc2 = fc2
        self.gate = gate

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from ``x`` ``[..., K]`` and ``residual`` ``[..., C]``, or None for zeros."""
        return self.after_norm(x if self.norm is None else self.norm(x), residual)

    def after_norm(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from an ``x`` that is already normalized."""
        hidden = self.fc1(x) if self.gate is None else self.gate(x) * self.fc1(x)
        return self.fc2(hidden, residual)


class InferenceBlock(nn.Module):
    """A pre-norm block, one operator after the other; ``name``: of the source module."""

    def __init__(
        self,
        name: str,
        qkv: InferenceLinear,
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
        return f"{describe_gemms(self.qkv, self.proj, self.mlp.fc1, self.mlp.fc2)}, separate attention"

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """Transforms the residual stream ``x`` ``[B, N, C]``; returns a new tensor."""
        x = x.to(self.dtype).contiguous()
        x = self.proj(self.attended(x, rotary), x)
        return self.mlp(x, x)

    def attended(self, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        """Computes the input of the output projection, ``[B, N, H * D]``."""
        attended: Tensor = self.attention(self.qkv(x)) if rotary is None else self.attention(self.qkv(x), rotary)
        return attended
