"""Layers whose weights are converted once to the dtype in which torch or vitfast's kernels multiply them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.ir import Precision
from vitfast.inference.modules.attention import Heads, InferenceAttention
from vitfast.inference.modules.linear import WEIGHT_DTYPES, InferenceLinear
from vitfast.layers.positional_attention import positional_map
from vitfast.ops.linear import ACTIVATIONS, fp16_linear
from vitfast.ops.mlp import CUDA_DTYPES
from vitfast.quantization.int8_arithmetic import positive_scale

_MULTIPLE = 16  # of the sizes of a weight in 8 bits
_MIN_ROWS = 17


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
        return fp16_linear(x, self.weight, self.bias)


class Fp16ResultLinear(Fp16InputLinear):
    """A linear layer in FP16_16: as in FP16_32, and the result is rounded to fp16."""

    def gemm(self, x: Tensor) -> Tensor:
        return super().gemm(x).to(torch.float16)


class ScaledLinear(InferenceLinear):
    """Base of linear layers with operands in 8 bits, one scale for each token and output channel, and torch's GEMM.

    The GEMMs of a GPU take multiples of 16; weights and inputs are padded by zeros.
    """

    largest: ClassVar[float]  # magnitude of the type

    weight_scale: Tensor  # [O], padded

    def gemm(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(torch.float32)
        num_rows = len(rows)
        # torch._int_mm takes more than 16 rows
        rows = F.pad(rows, (0, self.weight.shape[1] - self.in_features, 0, max(0, _MIN_ROWS - num_rows)))
        scale = positive_scale(rows.abs().amax(1, keepdim=True) / self.largest)
        out = self.product(rows / scale, scale)[:num_rows, : self.out_features].unflatten(0, x.shape[:-1])
        return (out if self.bias is None else out + self.bias).to(x.dtype)

    def product(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Computes ``(rows * scale) wᵀ`` from unrounded ``rows`` ``[M, K]`` and ``scale`` ``[M, 1]``."""
        raise NotImplementedError

    def _stored(self, weight: Tensor) -> Tensor:
        outputs, inputs = weight.shape
        weight = F.pad(weight.to(torch.float32), (0, -inputs % _MULTIPLE, 0, -outputs % _MULTIPLE))
        self.register_buffer("weight_scale", positive_scale(weight.abs().amax(1) / self.largest))
        return self.rounded(weight / self.weight_scale[:, None])

    def _restored(self) -> Tensor:
        weight = self.weight.to(torch.float32) * self.weight_scale[:, None]
        return weight[: self.out_features, : self.in_features].contiguous()

    def rounded(self, x: Tensor) -> Tensor:
        """Rounds to the type; magnitudes are at most ``largest``, but for the error of a division."""
        return x.to(WEIGHT_DTYPES[self.precision])


class Int8Linear(ScaledLinear):
    """A linear layer in int8: exact sums, the integers and scales of ``Int8Config()``."""

    gemm_name = "torch._int_mm"
    largest = 127.0

    def product(self, rows: Tensor, scale: Tensor) -> Tensor:
        return torch._int_mm(self.rounded(rows), self.weight.t()) * (scale * self.weight_scale)

    def rounded(self, x: Tensor) -> Tensor:
        return super().rounded(x.round())


class Fp8Linear(ScaledLinear):
    """A linear layer in FP8 (e4m3): fp32 sums, and a result in bf16."""

    gemm_name = "torch._scaled_mm"
    largest = 448.0

    def product(self, rows: Tensor, scale: Tensor) -> Tensor:
        return torch._scaled_mm(
            self.rounded(rows), self.weight.t(), scale, self.weight_scale[None], out_dtype=torch.bfloat16
        )


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
