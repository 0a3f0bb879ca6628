"""Products in each precision on torch's operators, for devices and builds without packed kernels.

They compute what the packed kernels compute, but for the order of sums: see ``docs/cpu.md`` and ``docs/numerics.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.inference.ir import Activation, Precision
from vitfast.quantization.int8_arithmetic import integer_product, quantize_dynamic, quantize_weight, weight_scale

_STORED = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp16_32": torch.float16,
    "int8": torch.int8,
}
_FP16 = FloatFormat.fp16()


def round_to_fp16(x: Tensor) -> Tensor:
    """Rounds float32 to half precision, ties to even, and back."""
    if x.is_cuda:  # torch's conversion gives the same bits, also where our kernel is not proven yet
        return x.to(torch.float16).to(torch.float32)
    return ops.quantize_float(x, _FP16, rounding="nearest_even")


def store_weight(weight: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """Returns a weight ``[O, K]`` in the type that it is stored in, and for int8 the scale of each row ``[O]``."""
    if precision != "int8":
        return weight.to(_STORED[precision], copy=True), None
    scale = weight_scale(weight)
    return quantize_weight(weight, scale).to(torch.int8), scale


def restore_weight(stored: Tensor, scale: Tensor | None) -> Tensor:
    """Returns what a stored weight stands for, in float32."""
    weight = stored.to(torch.float32)
    return weight if scale is None else weight * scale[:, None]


def plain_product(x: Tensor, stored: Tensor, scale: Tensor | None, bias: Tensor | None, precision: Precision) -> Tensor:
    """Computes ``x wᵀ + bias``, ``[..., O]`` in float32, from ``x`` ``[..., K]``."""
    if precision == "fp32":
        return F.linear(x, stored, bias)
    if precision == "bf16":
        out = F.linear(x.to(torch.bfloat16), stored).to(torch.float32)
        return out if bias is None else out + bias
    if precision == "fp16_32":
        return F.linear(round_to_fp16(x), stored.to(torch.float32), bias)
    assert scale is not None
    integers, x_scale = quantize_dynamic(x, (-1,))
    out = integer_product(F.linear, integers, stored.to(torch.float32), -1) * (x_scale * scale)
    return out if bias is None else out + bias


def apply_activation(x: Tensor, activation: Activation) -> Tensor:
    """Computes an activation of ``ir.Activation``."""
    if activation == "none":
        return x
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="none" if activation == "gelu" else "tanh")
    if activation == "gelu_quick":
        return x * torch.sigmoid(1.702 * x)
    if activation == "tanh":
        return torch.tanh(x)
    return F.silu(x) if activation == "silu" else F.relu(x)
