"""Builds accelerated models with cast weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vitfast.inference.backend import Backend, Layer
from vitfast.inference.cuda.cast_layers import (
    CastLinear,
    Fp8Linear,
    Fp16InputLinear,
    Fp16ResultLinear,
    FusedGatedAttention,
    Int8Linear,
)
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.ir import Precision
from vitfast.inference.modules.attention import GatedAttention
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.ops.gated_positional_attention import has_gated_kernel
from vitfast.ops.library import has_kernel, kernel_state

_TOKEN_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp16_32": torch.float32,
    "fp16_16": torch.float16,
    "int8": torch.bfloat16,
    "fp8": torch.bfloat16,
}
_LINEAR_CLASSES: dict[str, type[InferenceLinear]] = {
    "fp16_32": Fp16InputLinear,
    "fp16_16": Fp16ResultLinear,
    "int8": Int8Linear,
    "fp8": Fp8Linear,
}


class CudaBackend(Backend):
    """Converts weights to the precision's dtype.

    It also runs on a CPU, on the operators' CPU kernels, which tests use.
    """

    per_image = False

    @property
    def dtype(self) -> torch.dtype:
        return _TOKEN_DTYPES[self.precision]

    @staticmethod
    def describe_kernels(body: nn.Module, device_type: str) -> str:
        called = called_kernels(body, device_type)
        kernels = f"vitfast's {', '.join(called)}, torch's for the rest" if called else "torch's"
        reasons = _replaced_kernels(body, device_type)
        kernels += f" ({reasons})" if reasons else ""
        caches = [module.graphs for module in body.modules() if isinstance(module, ImageTower) and module.graphs]
        return f"{kernels}; CUDA graphs of up to {caches[0].largest} images" if caches else kernels

    def linear_class(self, precision: Precision) -> type[InferenceLinear]:
        return _LINEAR_CLASSES.get(precision, CastLinear)

    def layer_class(self, base: type[Layer], *parts: Any) -> type[Layer]:
        if base is not GatedAttention:
            return base
        content, positional = parts
        is_fused = has_gated_kernel(self.device, self.dtype, positional.shape[-1] ** 2, content.head_dim)
        fused: Any = FusedGatedAttention if is_fused else base
        return fused


def called_kernels(body: nn.Module, device_type: str) -> list[str]:
    """Names the kernels of vitfast that a built model calls on a device."""
    return [operator for operator in _operators(body) if has_kernel(operator, device_type)]


def _operators(body: nn.Module) -> list[str]:
    return sorted({operator for module in body.modules() for operator in getattr(module, "operators", ())})


def _replaced_kernels(body: nn.Module, device_type: str) -> str:
    """Says which kernels torch's operators replace, and why."""
    replaced: dict[str, list[str]] = {}
    for operator in _operators(body):
        if not has_kernel(operator, device_type):
            reason = kernel_state(operator, device_type).removeprefix("torch: ")
            replaced.setdefault(reason, []).append(operator)
    return "; ".join(f"{', '.join(operators)}: {reason}" for reason, operators in replaced.items())
