"""Layers whose weights are cast once to the dtype in which they are multiplied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.ir import Precision
from vitfast.inference.modules.attention import Heads, InferenceAttention
from vitfast.inference.modules.linear import WEIGHT_DTYPES, InferenceLinear
from vitfast.layers.positional_attention import positional_map
from vitfast.ops.linear import ACTIVATIONS
from vitfast.ops.mlp import CUDA_DTYPES


class CastLinear(InferenceLinear):
    """A linear layer in fp32, bf16 or fp16: weight, bias, input and result have one dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision, *arguments: Any) -> None:
        bias = None if bias is None else bias.to(WEIGHT_DTYPES[precision])
        super().__init__(weight, bias, precision, *arguments)

    @property
    def operators(self) -> tuple[str, ...]:
        """Operators of vitfast that have a CUDA kernel for the dtype."""
        return ("linear",) if self.weight.dtype in CUDA_DTYPES else ()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.activation not in ACTIVATIONS:
            return super().forward(x, residual)
        x = (x if self.norm is None else self.norm(x)).to(self.weight.dtype)
        return ops.linear(x, self.weight, self.bias, activation=self.activation, scale=self.scale, residual=residual)

    def gemm(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Fp16InputLinear(InferenceLinear):
    """A linear layer in FP16_32: fp16 operands, fp32 sums and results."""

    def gemm(self, x: Tensor) -> Tensor:
        half = x.to(torch.float16)
        if x.is_cuda:
            out = torch.mm(half.flatten(0, -2), self.weight.t(), out_dtype=torch.float32).unflatten(0, x.shape[:-1])
        else:  # torch has no CPU GEMM of fp16 operands with an fp32 result
            out = F.linear(half.to(torch.float32), self.weight.to(torch.float32))
        return out if self.bias is None else out + self.bias


class FusedGatedAttention(Heads):
    """ConViT's attention in one operator, which reads all positional probabilities; arguments as ``GatedAttention``."""

    operators = ("gated_positional_attention",)

    gate: Tensor
    positional: Tensor  # [H, N, N]

    def __init__(self, content: InferenceAttention, gate: Tensor, positional: Tensor, dtype: torch.dtype) -> None:
        super().__init__(content.heads, content.head_dim, content.scale)
        positional = positional_map(positional).to(dtype)
        # rows of an odd number of tokens are padded by one: the CUDA kernel reads two elements at a time
        num_patches = positional.shape[-1]
        self.register_buffer("positional", F.pad(positional, (0, num_patches % 2))[..., :num_patches])
        self.register_buffer("gate", gate)

    def forward(self, qkv: Tensor) -> Tensor:
        out = ops.gated_positional_attention(self.split_heads(qkv), self.positional, self.gate, scale=self.scale)
        return out.flatten(-2)
