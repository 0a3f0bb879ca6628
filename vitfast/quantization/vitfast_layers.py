"""Quantized counterparts of vitfast's leaf modules: LayerNorm, standardized convolution and stored results."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitfast import ops
from vitfast.layers import AddPositions, GatedMlp, JoinTokens, LayerNorm, Mlp, ResidualAdd, StdConv2d, StoredFeatures
from vitfast.layers.fusion import is_observed
from vitfast.ops.autocast import autocast_off
from vitfast.quantization.quantized_module import QuantizedLinearBase, QuantizedModule
from vitfast.quantization.rounders import Rounder, can_fuse
from vitfast.quantization.torch_layers import QuantizedLayerNorm


class QuantizedVitfastLayerNorm(QuantizedLayerNorm, LayerNorm):
    """Rounds within the operator where the format allows it."""

    def normalize(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.gamma, self.bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        operand, result = self.arithmetic.rounder("operand"), self.arithmetic.rounder("result")
        if self.is_off or not can_fuse(operand) or not can_fuse(result):
            return super().forward(x)
        with autocast_off(x):
            return ops.layer_norm(
                x.to(self.weight.dtype), self.gamma, self.bias, self.eps, round_operand=operand, round_result=result
            )

    def fused_add(self, x: Tensor, residual: Tensor, round_sum: Any = None) -> tuple[Tensor, Tensor] | None:
        if self.is_off:
            return super().fused_add(x, residual, round_sum)
        operand, result = self.arithmetic.rounder("operand"), self.arithmetic.rounder("result")
        if is_observed(self) or not x.dtype == residual.dtype == self.weight.dtype:
            return None
        if not can_fuse(round_sum) or not can_fuse(operand) or not can_fuse(result):
            return None
        with autocast_off(x):
            return ops.add_layer_norm(
                x,
                residual,
                self.gamma,
                self.bias,
                self.eps,
                round_sum=round_sum,
                round_operand=operand,
                round_result=result,
            )


class QuantizedStdConv2d(QuantizedLinearBase, StdConv2d):
    """Rounds the standardized kernels in every forward pass, also after conversion.

    Kernels rounded before the standardization would not be values of the format after it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off:
            return super().forward(x)
        return self.compute(self._conv_forward, self.padded(x), self.standardized_weight())

    def convert(self) -> None:
        """Does nothing."""


class QuantizedStoredFeatures(QuantizedModule, StoredFeatures):
    """Rounds the features."""


class QuantizedJoinTokens(QuantizedModule, JoinTokens):
    """Rounds the joined tokens."""


class QuantizedAddPositions(QuantizedModule, AddPositions):
    """Rounds the sum."""


class QuantizedResidualAdd(QuantizedModule, ResidualAdd):
    """Rounds the sum, within the LayerNorm's operator where the format allows it."""

    @property
    def round_sum(self) -> Rounder | None:
        return self.arithmetic.rounder("stored")

    def add_mlp(self, x: Tensor, normalized: Tensor, mlp: Mlp | GatedMlp) -> Tensor:
        return super().add_mlp(x, normalized, mlp) if self.is_off else self(x, mlp(normalized))
