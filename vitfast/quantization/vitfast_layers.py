"""Quantized counterparts of vitfast's leaf modules: LayerNorm, standardized convolution and stored results."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vitfast import ops
from vitfast.layers import AddPositions, JoinTokens, LayerNorm, Mlp, ResidualAdd, StdConv2d, StoredFeatures
from vitfast.layers.fusion import is_observed
from vitfast.layers.std_conv import pad_same
from vitfast.ops.autocast import autocast_off
from vitfast.quantization.arithmetic import FusedNorm
from vitfast.quantization.quantized_module import QuantizedLinearBase, QuantizedModule, QuantizedNorm
from vitfast.quantization.rounders import FloatRounder


class QuantizedVitfastLayerNorm(QuantizedNorm, LayerNorm):
    """Rounds within the operator where the format allows it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off:
            return super().forward(x)
        with autocast_off(x):
            x = x.to(self.weight.dtype)
            fused = self._fused()
            if fused is None:
                return self.result(super().forward(self.operand(x)))
            return ops.layer_norm(
                x, self.weight, self.bias, self.eps, round_operand=fused.operand, round_result=fused.result
            )

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_off:
            return super().add(x, residual)
        added = self.fused_add(x, residual, None)
        if added is not None:
            return added
        total = x + residual
        return total, self(total)

    def fused_add(self, x: Tensor, residual: Tensor, round_sum: FloatRounder | None) -> tuple[Tensor, Tensor] | None:
        """Adds and normalizes in one operator; returns None if the roundings or a hook prevent it."""
        fused = self._fused()
        if fused is None or is_observed(self) or not x.dtype == residual.dtype == self.weight.dtype:
            return None
        with autocast_off(x):
            return ops.add_layer_norm(
                x,
                residual,
                self.weight,
                self.bias,
                self.eps,
                round_sum=round_sum,
                round_operand=fused.operand,
                round_result=fused.result,
            )

    def _fused(self) -> FusedNorm | None:
        quantization = self.quantization
        if quantization.mode != "quantized":
            return None
        return quantization.arithmetic.fused_norm(converted=quantization.converted)


class QuantizedStdConv2d(QuantizedLinearBase, StdConv2d):
    """Rounds the standardized kernels in every forward pass, also after conversion.

    Kernels rounded before the standardization would not be values of the format after it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off:
            return super().forward(x)
        if self.conventions.padding == "same":
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return self.compute(self._convolve, x, self.standardized_weight(), channel_dim=1)

    def convert(self) -> None:
        """Does nothing."""

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class QuantizedStoredFeatures(QuantizedModule, StoredFeatures):
    """Rounds the features."""

    def forward(self, x: Tensor) -> Tensor:
        return self.stored(x)


class QuantizedJoinTokens(QuantizedModule, JoinTokens):
    """Rounds the joined tokens."""

    def forward(self, tokens: Tensor, *, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
        return self.stored(super().forward(tokens, before=before, after=after), in_place=True)


class QuantizedAddPositions(QuantizedModule, AddPositions):
    """Rounds the sum."""

    def forward(self, tokens: Tensor, *, positions: Tensor) -> Tensor:
        return self.stored(super().forward(tokens, positions=positions), in_place=True)


class QuantizedResidualAdd(QuantizedModule, ResidualAdd):
    """Rounds the sum, within the LayerNorm's operator where the format allows it."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.stored(x + branch, in_place=True)

    def add_and_normalize(self, x: Tensor, branch: Tensor, norm: LayerNorm) -> tuple[Tensor, Tensor]:
        quantization = self.quantization
        if quantization.mode != "quantized" or not quantization.arithmetic.rounds_results:
            return super().add_and_normalize(x, branch, norm)
        fused = quantization.arithmetic.fused_norm(converted=False)
        if fused is not None and isinstance(norm, QuantizedVitfastLayerNorm):
            added = norm.fused_add(branch, x, fused.result)
            if added is not None:
                return added
        x = self(x, branch)
        return x, norm(x)

    def add_mlp(self, x: Tensor, normalized: Tensor, mlp: Mlp) -> Tensor:
        return super().add_mlp(x, normalized, mlp) if self.is_off else self(x, mlp(normalized))
