"""Builds accelerated models with cast weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.backend import Backend
from vitfast.inference.cuda.cast_layers import AddNormBlock, CastLinear, Fp16InputLinear, FusedGatedAttention
from vitfast.inference.ir import Precision
from vitfast.inference.modules.attention import GatedAttention, InferenceAttention
from vitfast.inference.modules.block import InferenceBlock, InferenceMlp
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.norm import NormLinear
from vitfast.layers.positional_attention import positional_map
from vitfast.ops.gated_positional_attention import has_gated_kernel
from vitfast.ops.library import has_kernel

_TOKEN_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp16_32": torch.float32}


class CudaBackend(Backend):
    """Casts weights to the precision's dtype; all precisions but int8.

    It also runs on a CPU, on the operators' CPU kernels, which tests use.
    """

    per_image = False

    @property
    def dtype(self) -> torch.dtype:
        return _TOKEN_DTYPES[self.precision]

    def describe_kernels(self, body: nn.Module) -> str:
        kernels = called_kernels(body, self.device.type)
        return f"vitfast's {', '.join(kernels)}, torch's for the rest" if kernels else "torch's"

    def linear_class(self, precision: Precision) -> type[InferenceLinear]:
        return Fp16InputLinear if precision == "fp16_32" else CastLinear

    def block_class(
        self, qkv: NormLinear, attention: nn.Module, proj: InferenceLinear, mlp: InferenceMlp
    ) -> type[InferenceBlock]:
        is_fused = _are_cast(mlp.fc1, mlp.fc2) and mlp.norm is not None and not mlp.norm.rounds_input
        return AddNormBlock if is_fused else InferenceBlock

    def gated_attention(
        self, content: InferenceAttention, gate: Tensor, positional: Tensor
    ) -> InferenceAttention | GatedAttention:
        if not has_gated_kernel(self.device, self.dtype, positional.shape[-1] ** 2, content.head_dim):
            return super().gated_attention(content, gate, positional)
        all_positions = positional_map(positional).to(self.dtype)
        return FusedGatedAttention(content.heads, content.head_dim, content.scale, gate=gate, positional=all_positions)


def called_kernels(body: nn.Module, device_type: str) -> list[str]:
    """Names the kernels of vitfast that a built model calls on a device."""
    called = {operator for module in body.modules() for operator in getattr(module, "operators", ())}
    return sorted(operator for operator in called if has_kernel(operator, device_type))


def _are_cast(*linears: InferenceLinear) -> bool:
    return all(isinstance(linear, CastLinear) for linear in linears)
