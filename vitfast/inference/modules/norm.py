"""LayerNorm of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast import ops
from vitfast.formats import FloatFormat

_FP16 = FloatFormat.fp16()


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


def round_to_fp16(x: Tensor) -> Tensor:
    """Rounds float32 to fp16, ties to even, and converts back."""
    if x.is_cuda:  # torch's conversion is bit-identical and also available where our kernel is not proven
        return x.to(torch.float16).to(torch.float32)
    return ops.quantize_float(x, _FP16, rounding="nearest_even")
