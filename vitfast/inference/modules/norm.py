"""LayerNorm and RMSNorm of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.inference.ir import Precision

_FP16 = FloatFormat.fp16()


class InferenceNorm(nn.Module):
    """LayerNorm over the last dimension; ``rounds_input``: whether the input is rounded to fp16 (FP16_32)."""

    operators: tuple[str, ...] = ("layer_norm",)

    weight: Tensor | None  # [C]; None: ones
    bias: Tensor | None  # [C]; None: zeros

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float, *, rounds_input: bool) -> None:
        super().__init__()
        self.eps = eps
        self.rounds_input = rounds_input
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def is_fused_in(self, precision: Precision) -> bool:
        """Whether the operators of a layer in ``precision`` compute it as well; in a quantized model they may not."""
        return self.rounds_input == (precision == "fp16_32")

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``x`` ``[..., C]``."""
        return ops.layer_norm(round_to_fp16(x) if self.rounds_input else x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, rounds_input={self.rounds_input}"


class InferenceRmsNorm(InferenceNorm):
    """RMSNorm over the last dimension (Zhang and Sennrich, 2019); arguments as ``InferenceNorm``."""

    operators = ()

    def is_fused_in(self, precision: Precision) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        x = round_to_fp16(x) if self.rounds_input else x
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps).to(x.dtype)


def round_to_fp16(x: Tensor) -> Tensor:
    """Rounds float32 to fp16, ties to even, and converts back."""
    if x.is_cuda:  # torch's conversion is bit-identical and also available where our kernel is not proven
        return x.to(torch.float16).to(torch.float32)
    return ops.quantize_float(x, _FP16, rounding="nearest_even")
