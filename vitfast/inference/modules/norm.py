"""LayerNorm of accelerated models, alone and before a linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from vitfast import ops
from vitfast.inference.modules.linear import InferenceLinear, round_to_fp16


class InferenceNorm(nn.Module):
    """LayerNorm over the last dimension; ``rounds_input``: whether the input is rounded to fp16 (FP16_32)."""

    operators = ("layer_norm",)

    weight: Tensor | None  # [C]; None: ones
    bias: Tensor | None  # [C]; None: zeros

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float, *, rounds_input: bool) -> None:
        super().__init__()
        self.eps = eps
        self.rounds_input = rounds_input
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``x`` ``[..., C]``."""
        return ops.layer_norm(round_to_fp16(x) if self.rounds_input else x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, rounds_input={self.rounds_input}"


class NormLinear(nn.Module):
    """``linear(norm(x))``."""

    def __init__(self, norm: InferenceNorm, linear: InferenceLinear) -> None:
        super().__init__()
        self.norm = norm
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))
