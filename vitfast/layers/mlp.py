"""The MLP of a transformer block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.layers.fusion import allow_in_place, is_observed, may_fuse
from vitfast.layers.layer_norm import LayerNorm

GeluVariant = Literal["erf", "tanh", "quick"]


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))``, with the residual addition in the same operator.

    One fused operator reads the parameters of ``fc1`` and ``fc2``. If either has hooks, is quantized or is replaced by
    another class, both are called instead.

    Args:
        dim: number of channels C.
        hidden_dim: width F of the hidden layer.
        out_dim: number of output channels; None for ``dim``.
        gelu: ``"erf"`` for the exact GELU, ``"tanh"`` for the approximation of Google's JAX models, ``"quick"`` for
            ``x * sigmoid(1.702 x)`` of OpenAI's CLIP, which is not fused.
        drop_rate: dropout after the activation and after ``fc2``.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        out_dim: int | None = None,
        gelu: GeluVariant = "erf",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.approximate = "none" if gelu == "erf" else gelu  # torch's name
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes ``mlp(x) + residual`` of ``x`` ``[B, N, C]`` and ``residual`` ``[B, N, out_dim]`` or None."""
        drops = self.training and self.drop.p > 0.0
        if self.approximate != "quick" and may_fuse(self.fc1, self.fc2) and not drops:
            parameters = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            return ops.mlp(x, *parameters, residual=residual, approximate=self.approximate)
        hidden = self.drop(self._gelu(self.fc1(x)))  # [B, N, F]
        out = self.drop(self.fc2(allow_in_place(hidden, self.drop, self, "fc2")))
        return out if residual is None else out + residual

    def _gelu(self, hidden: Tensor) -> Tensor:
        """Applies GELU, in place where nothing else reads ``hidden``: allocating that size again costs page faults."""
        if self.approximate == "quick":
            return hidden * torch.sigmoid(1.702 * hidden)
        is_own = not hidden.requires_grad and isinstance(self.fc1, nn.Linear) and not is_observed(self.fc1)
        if not is_own or torch.compiler.is_compiling():
            return F.gelu(hidden, approximate=self.approximate)
        torch.ops.aten.gelu_.default(hidden, approximate=self.approximate)
        return hidden

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class GatedMlp(nn.Module):
    """``fc2(norm(silu(g) * h))``, where g and h are the halves of ``fc1(x)``: SwiGLU (Shazeer, 2020).

    As in the largest DINOv2 and in DINOv3, and with the LayerNorm in EVA-02.

    Args:
        dim: number of channels C.
        hidden_dim: width F of g and h together, an even number.
        norm_eps: epsilon of the LayerNorm; None for no LayerNorm.
        drop_rate: dropout after the product and after ``fc2``.
    """

    def __init__(self, dim: int, hidden_dim: int, *, norm_eps: float | None = None, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.norm = nn.Identity() if norm_eps is None else LayerNorm(hidden_dim // 2, norm_eps)
        self.fc2 = nn.Linear(hidden_dim // 2, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes ``mlp(x) + residual`` of ``x`` and ``residual`` ``[B, N, C]``; ``residual`` may be None."""
        gate, hidden = self.fc1(x).chunk(2, dim=-1)  # each [B, N, F / 2]
        out: Tensor = self.drop(self.fc2(self.norm(self.drop(F.silu(gate) * hidden))))
        return out if residual is None else out + residual
