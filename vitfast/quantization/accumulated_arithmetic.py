"""Arithmetic that also rounds the accumulators."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.errors import UserError
from vitfast.quantization.arithmetic import LinearMap, RoundedArithmetic
from vitfast.quantization.rounded_weight import rounded_weight
from vitfast.quantization.rounders import FloatRounder, round_in_place


@dataclass(frozen=True)
class AccumulatedArithmetic(RoundedArithmetic):
    """``RoundedArithmetic`` that also rounds the accumulator of linear layers within the GEMM.

    Biases are added in float32 to the last accumulator, before the result is rounded.

    Attributes:
        chunk: number of products summed in float32 before the accumulator is rounded; None for all of them. See
            ``vitfast.ops.matmul_accumulate``.
    """

    chunk: int | None = None

    def linear(
        self,
        layer: nn.Module,
        function: LinearMap,
        x: Tensor,
        weight: Tensor,
        *,
        converted: bool,
        channel_dim: int,
    ) -> Tensor:
        weight = weight if converted else rounded_weight(layer, weight, self.rounder)
        x = self.operand(x, converted=converted)
        out = self._matmul(x, weight) if function is F.linear else self._convolution(layer, x, weight)
        if layer.bias is not None:
            bias: Tensor = layer.bias  # type: ignore[assignment]
            out = out + (bias if channel_dim == -1 else bias[:, None, None])
        return round_in_place(self.rounder, out) if self._rounds_result(converted) else out

    def _matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        rounder = self.rounder
        assert isinstance(rounder, FloatRounder)
        return ops.matmul_accumulate(x, weight, rounder.format, self.chunk, rounding=rounder.rounding)

    def _convolution(self, layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
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
        height = (x.shape[2] + 2 * layer.padding[0] - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1) // (
            layer.stride[0]
        ) + 1
        return out.reshape(*out.shape[:2], height, -1)
