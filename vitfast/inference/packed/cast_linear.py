"""A linear layer whose weight is cast, once, to the type that it is multiplied in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.ir import Activation
from vitfast.inference.packed.packed_linear import PackedLinear
from vitfast.ops.linear import ACTIVATIONS
from vitfast.ops.mlp import CUDA_DTYPES


class CastLinear(PackedLinear):
    """Computes what ``PackedLinear`` does, by the operator ``linear`` or by torch's products, as GPUs run them.

    In fp32, bf16 and fp16 weight, bias, input and result are of that type. In fp16_32 the operands are, and sums and
    results are float32. It takes what ``PackedLinear`` takes, but for ``"int8"``.
    """

    _may_pack = False

    @property
    def is_cast(self) -> bool:
        """Not in fp16_32."""
        return self.precision != "fp16_32"

    @property
    def operators(self) -> tuple[str, ...]:
        """Those of vitfast that it calls, where their kernels for a GPU take its type."""
        return ("linear",) if self.is_cast and self.packed.dtype in CUDA_DTYPES else ()

    def forward(
        self,
        x: Tensor,
        activation: Activation = "none",
        *,
        scale: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See ``PackedLinear``."""
        if not self.is_cast or activation not in ACTIVATIONS:
            return super().forward(x, activation, scale=scale, residual=residual)
        x = x.to(self.packed.dtype)
        return ops.linear(x, self.packed, self.bias, activation=activation, scale=scale, residual=residual)

    def product(self, x: Tensor) -> Tensor:
        """See ``PackedLinear``."""
        if self.is_cast:
            return F.linear(x.to(self.packed.dtype), self.packed, self.bias)
        out = _half_product(x, self.packed)
        return out if self.bias is None else out + self.bias


def _half_product(x: Tensor, weight: Tensor) -> Tensor:
    """Computes ``x wᵀ`` in float32 from ``x`` ``[..., K]``, rounded to half, and ``weight`` ``[O, K]`` in half."""
    half = x.to(torch.float16)
    if not x.is_cuda:  # torch's CPU has no product of half operands with a float32 result
        return F.linear(half.to(torch.float32), weight.to(torch.float32))
    return torch.mm(half.flatten(0, -2), weight.t(), out_dtype=torch.float32).unflatten(0, x.shape[:-1])
