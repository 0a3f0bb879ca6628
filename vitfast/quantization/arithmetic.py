"""How a quantized layer computes: the interface, and rounding of operands, results and accumulators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.errors import UserError
from vitfast.layers.fusion import take_in_place
from vitfast.ops.linear import fp16_linear
from vitfast.quantization.rounded_weight import rounded_weight
from vitfast.quantization.rounders import FloatRounder, Rounder, fits_fp16, round_in_place

# (x, weight, bias) -> result: F.linear, or a convolution with its stride and padding
LinearMap = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# "operand", "result": input and output of a linear layer, convolution or LayerNorm; "stored": of another module
Role = Literal["weight", "operand", "result", "stored"]


@dataclass(frozen=True)
class Arithmetic:
    """Numerics of a configuration; this base class computes in float32.

    One object serves many layers; the state of a layer is in the layer's buffers.
    """

    converted: bool = field(default=False, kw_only=True)  # whether ``convert_weight`` was called

    def rounder(self, role: Role) -> Rounder | None:
        """Returns the rounding of tensors with this role, None if there is none."""
        return None

    def round(self, role: Role, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Rounds ``x``; ``in_place``: nothing else reads ``x``, so that it may be overwritten."""
        rounder = self.rounder(role)
        if rounder is None:
            return x
        return round_in_place(rounder, x) if in_place else rounder(x)

    def linear(self, layer: Any, function: LinearMap, x: Tensor, weight: Tensor) -> Tensor:
        """Computes ``function(x, weight, layer.bias)`` in float32.

        Args:
            layer: holds the bias, and buffers of this arithmetic.
            function: a linear layer or a convolution.
            x: the layer's input.
            weight: of the layer, possibly flattened; output channels come first. A convolution's has 4 dimensions.
        """
        return function(x, weight, layer.bias)

    def gamma(self, layer: Any) -> Tensor | None:
        """Returns the weight with which a LayerNorm computes, None if it has none."""
        return layer.weight

    def convert_weight(self, layer: Any) -> None:
        """Rounds the weight of a linear layer, convolution or LayerNorm in place."""

    def prepare_layer(self, layer: Any) -> None:
        """Adds non-persistent buffers to a linear layer or convolution."""

    def observe(self, layer: Any, x: Tensor) -> None:
        """Updates the ranges of a linear layer or convolution during calibration."""


@dataclass(frozen=True)
class RoundedArithmetic(Arithmetic):
    """Rounds the operands of GEMMs and LayerNorms and optionally the results; GEMMs accumulate in float32.

    Biases, statistics and everything within attention are never rounded. The result of GELU is rounded only as the
    operand of the next layer.
    """

    rounding: Rounder
    round_results: bool = False  # FP16_16 against FP16_32
    # as in myrtle-vision: converted layers no longer round activations, and gammas are first rounded by the conversion
    legacy_convert: bool = False

    def rounder(self, role: Role) -> Rounder | None:
        if role in ("result", "stored") and not self.round_results:
            return None
        if role in ("operand", "result") and self.converted and self.legacy_convert:
            return None
        return self.rounding

    def linear(self, layer: Any, function: LinearMap, x: Tensor, weight: Tensor) -> Tensor:
        if not self.converted:
            weight = rounded_weight(layer, weight, self.rounding)
        if x.is_cuda and function is F.linear and self.rounder("operand") is not None and fits_fp16(self.rounding):
            function = Fp16Product.apply
        out = function(self.round("operand", x, in_place=take_in_place(x)), weight, layer.bias)
        return self.round("result", out, in_place=True)

    @property
    def rounds_gamma(self) -> bool:
        """Whether every forward pass rounds LayerNorms' weights."""
        return not self.converted and not self.legacy_convert

    def gamma(self, layer: Any) -> Tensor | None:
        if layer.weight is None or not self.rounds_gamma:
            return layer.weight
        return rounded_weight(layer, layer.weight, self.rounding)

    def convert_weight(self, layer: Any) -> None:
        with torch.no_grad():
            layer.weight.copy_(self.rounding(layer.weight))


class Fp16Product(torch.autograd.Function):
    """``F.linear`` of float32 operands that float16 represents, on fp16 tensor cores; gradients in float32.

    The products are those of float32; only the order of their sums differs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return fp16_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            grad @ weight if needs_x else None,
            rows.t() @ x.flatten(0, -2) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


@dataclass(frozen=True)
class AccumulatedArithmetic(RoundedArithmetic):
    """``RoundedArithmetic`` that also rounds the accumulator of linear layers within the GEMM.

    Biases are added in float32 to the last accumulator, before the result is rounded.
    """

    accumulator: FloatRounder = field(kw_only=True)
    chunk: int | None = field(kw_only=True)  # see ``vitfast.ops.matmul_accumulate``

    def linear(self, layer: Any, function: LinearMap, x: Tensor, weight: Tensor) -> Tensor:
        def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            is_linear = function is F.linear
            out = self._matmul(x, weight) if is_linear else self._convolution(layer, x, weight)
            return out if bias is None else out + (bias if is_linear else bias[:, None, None])

        return super().linear(layer, multiply, x, weight)

    def _matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        return ops.matmul_accumulate(x, weight, self.accumulator.format, self.chunk, rounding=self.accumulator.rounding)

    def _convolution(self, layer: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Computes a convolution as the GEMM of im2col patches; ``x`` is ``[B, C, height, width]``."""
        if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
            raise UserError(
                f"accumulate='fp16' computes linear layers and convolutions with groups=1 and zero padding, not "
                f"{layer}; leave it out with overrides"
            )
        if isinstance(layer.padding, str):
            raise UserError(f"accumulate='fp16' needs a convolution's padding in numbers, got {layer.padding!r}")
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # [B, C * kh * kw, L]
        out = self._matmul(patches.transpose(1, 2), weight.flatten(1)).transpose(1, 2)  # [B, out, L]
        span = layer.dilation[0] * (layer.kernel_size[0] - 1) + 1
        height = (x.shape[2] + 2 * layer.padding[0] - span) // layer.stride[0] + 1
        return out.unflatten(2, (height, -1))
