"""Linear layers of accelerated models: the interface, and the implementations on torch operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.errors import UserError
from vitfast.inference.ir import Activation, Precision
from vitfast.inference.modules.norm import InferenceNorm, round_to_fp16
from vitfast.ops.arguments import GELU_APPROXIMATE
from vitfast.quantization.int8_arithmetic import integer_matmul, quantize_dynamic, quantize_weight, weight_scale

# precision -> dtype of a stored weight
WEIGHT_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp16_32": torch.float16,
    "fp16_16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class SourceRows:
    """Rows of a source weight that an accelerated layer holds."""

    keys: tuple[str, ...]  # in the source's state dict; several for a shared tensor
    start: int  # first row
    count: int
    shape: tuple[int, ...]  # shape of a row in the source


class InferenceLinear(nn.Module):
    """Base of all linear layers: ``residual + scale * activation(norm(x) wᵀ + bias)``.

    Subclasses define how the weight is stored (``_stored``, ``_restored``) and multiplied (``gemm`` or ``forward``).

    Args:
        weight: ``[O, K]`` float32; it is converted, not kept.
        bias: ``[O]`` or None.
        precision: precision of the GEMM.
        rows: the source rows in ``weight``, in order.
        column_order: permutation of the source's columns: ``weight = source[:, column_order]``.
        activation: applied after the bias.
        scale: ``[O]``, or None for ones.
        norm: LayerNorm of the input, or None.

    Raises:
        UserError: a weight for int8 or fp8 is not finite.
    """

    gemm_name = "torch GEMM"

    weight: Tensor
    bias: Tensor | None
    column_order: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        precision: Precision,
        rows: tuple[SourceRows, ...],
        column_order: Tensor | None = None,
        activation: Activation = "none",
        scale: Tensor | None = None,
        norm: InferenceNorm | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.precision: Precision = precision
        self.rows = rows
        self.activation: Activation = activation
        self.norm = norm
        weight = weight.detach()
        if precision in ("int8", "fp8") and not weight.isfinite().all():
            names = ", ".join(key for one in rows for key in one.keys) or "a weight"
            raise UserError(
                f"{names}: {precision} holds no NaN or infinity; repair the weights, or use another precision"
            )
        if column_order is not None:
            column_order = column_order.to(weight.device)
            weight = weight[:, column_order]
        self.register_buffer("weight", self._stored(weight))
        self.register_buffer("bias", bias)
        self.register_buffer("column_order", column_order)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes ``[..., O]`` from ``x`` ``[..., K]`` and ``residual`` ``[..., O]``, or None for zeros."""
        out = _activate(self.gemm(x if self.norm is None else self.norm(x)), self.activation)
        if self.scale is not None:
            out = out * self.scale
        return out if residual is None else residual + out

    def gemm(self, x: Tensor) -> Tensor:
        """Computes ``x wᵀ + bias``."""
        raise NotImplementedError

    def source_rows(self) -> Iterator[tuple[SourceRows, Tensor]]:
        """Yields the source rows and their values in float32, rounded as they are stored."""
        weight = self._restored()
        if self.column_order is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.column_order, weight)
        for rows, value in zip(self.rows, weight.split([rows.count for rows in self.rows]), strict=True):
            yield rows, value.reshape(rows.count, *rows.shape)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, precision={self.precision!r}"

    def _stored(self, weight: Tensor) -> Tensor:
        return weight.to(WEIGHT_DTYPES[self.precision], copy=True)

    def _restored(self) -> Tensor:
        return self.weight.to(torch.float32)


class TorchLinear(InferenceLinear):
    """Computes what ``PackedLinear`` computes, up to the order of sums, for builds without packed kernels."""

    def gemm(self, x: Tensor) -> Tensor:
        if self.precision == "fp32":
            return F.linear(x, self.weight, self.bias)
        if self.precision == "fp16_32":
            return F.linear(round_to_fp16(x), self.weight.to(torch.float32), self.bias)
        out = F.linear(x.to(self.weight.dtype), self.weight).to(torch.float32)
        return out if self.bias is None else out + self.bias


class TorchInt8Linear(InferenceLinear):
    """As ``TorchLinear``, in int8."""

    weight_scale: Tensor

    def gemm(self, x: Tensor) -> Tensor:
        integers, x_scale = quantize_dynamic(x, (-1,))
        out = integer_matmul(F.linear, integers, self.weight.to(torch.float32)) * (x_scale * self.weight_scale)
        return out if self.bias is None else out + self.bias

    def _stored(self, weight: Tensor) -> Tensor:
        self.register_buffer("weight_scale", weight_scale(weight))
        return quantize_weight(weight, self.weight_scale).to(torch.int8)

    def _restored(self) -> Tensor:
        return self.weight.to(torch.float32) * self.weight_scale[:, None]


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "none":
        return x
    if activation in GELU_APPROXIMATE:
        return F.gelu(x, approximate=GELU_APPROXIMATE[activation])
    if activation == "gelu_quick":
        return x * torch.sigmoid(1.702 * x)
    if activation == "tanh":
        return torch.tanh(x)
    return F.silu(x) if activation == "silu" else F.relu(x)


def describe_gemms(*linears: InferenceLinear) -> str:
    """Describes for the report how some layers are multiplied."""
    return " and ".join(sorted({f"{linear.gemm_name}, {linear.precision}" for linear in linears}))
