"""How a quantized layer computes: the interface, and rounding of operands and results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitfast.layers.fusion import take_in_place
from vitfast.quantization.rounded_weight import rounded_weight
from vitfast.quantization.rounders import FloatRounder, Rounder, round_in_place

# (x, weight, bias) -> result: F.linear, or a convolution with its stride and padding
LinearMap = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class FusedNorm(NamedTuple):
    """The roundings of a LayerNorm that run within its operator."""

    operand: FloatRounder | None
    result: FloatRounder | None


class Arithmetic(ABC):
    """Numerics of a configuration. One object serves many layers; the state of a layer is in the layer's buffers."""

    @property
    def needs_calibration(self) -> bool:
        """Whether activations must be observed before the first forward pass."""
        return False

    @property
    def rounds_results(self) -> bool:
        """Whether stored results are rounded."""
        return False

    @abstractmethod
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
        """Computes ``function(x, weight, layer.bias)`` in float32.

        Args:
            layer: holds the bias, and buffers of this arithmetic.
            function: a linear layer or a convolution.
            x: the layer's input.
            weight: of the layer, possibly flattened; output channels come first.
            converted: whether ``convert_weight`` was called.
            channel_dim: the channel dimension of the result: -1 or 1.
        """

    @abstractmethod
    def convert_weight(self, layer: nn.Module) -> None:
        """Rounds the weight of a linear layer or convolution in place."""

    def prepare_layer(self, layer: nn.Module) -> None:  # noqa: B027 (optional)
        """Adds non-persistent buffers to a linear layer or convolution."""

    def observe(self, layer: nn.Module, x: Tensor) -> None:  # noqa: B027
        """Updates the ranges of a linear layer or convolution during calibration."""

    def operand(self, x: Tensor, *, converted: bool) -> Tensor:
        """Rounds the input of a LayerNorm."""
        return x

    def result(self, x: Tensor, *, converted: bool) -> Tensor:
        """Rounds the output of a LayerNorm."""
        return x

    def convert_gamma(self, layer: nn.Module) -> None:  # noqa: B027
        """Rounds the weight of a LayerNorm in place."""

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Rounds the result of a residual addition, a concatenation of tokens or an addition of positions.

        ``in_place``: nothing else reads ``x``, so that it may be overwritten.
        """
        return x

    def fused_norm(self, *, converted: bool) -> FusedNorm | None:
        """Returns the roundings of a LayerNorm if they can run within its operator, else None."""
        return None


@dataclass(frozen=True)
class RoundedArithmetic(Arithmetic):
    """Rounds the operands of GEMMs and LayerNorms and optionally the results; GEMMs accumulate in float32.

    Biases, statistics and everything within attention are never rounded. The result of GELU is rounded only as the
    operand of the next layer.

    Attributes:
        rounder: rounds a tensor.
        round_results: whether stored results are rounded, too: FP16_16 against FP16_32.
        legacy_convert: whether converted layers no longer round activations, as in myrtle-vision.
    """

    rounder: Rounder
    round_results: bool = False
    legacy_convert: bool = False

    @property
    def rounds_results(self) -> bool:
        return self.round_results

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
        out = function(self.operand(x, converted=converted), weight, layer.bias)  # type: ignore[arg-type]
        return round_in_place(self.rounder, out) if self._rounds_result(converted) else out

    def convert_weight(self, layer: nn.Module) -> None:
        with torch.no_grad():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            weight.copy_(self.rounder(weight))

    def convert_gamma(self, layer: nn.Module) -> None:
        if layer.weight is not None:
            self.convert_weight(layer)

    def operand(self, x: Tensor, *, converted: bool) -> Tensor:
        if not self._rounds_operand(converted):
            return x
        return round_in_place(self.rounder, x) if take_in_place(x) else self.rounder(x)

    def result(self, x: Tensor, *, converted: bool) -> Tensor:
        return self.rounder(x) if self._rounds_result(converted) else x

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        if not self.round_results:
            return x
        return round_in_place(self.rounder, x) if in_place else self.rounder(x)

    def fused_norm(self, *, converted: bool) -> FusedNorm | None:
        rounder = self.rounder
        if not isinstance(rounder, FloatRounder) or not rounder.can_fuse:
            return None
        return FusedNorm(
            rounder if self._rounds_operand(converted) else None, rounder if self._rounds_result(converted) else None
        )

    def _rounds_operand(self, converted: bool) -> bool:
        return not (converted and self.legacy_convert)

    def _rounds_result(self, converted: bool) -> bool:
        return self.round_results and not (converted and self.legacy_convert)


class NoArithmetic(Arithmetic):
    """Computes in float32: for modules that have a counterpart only because they contain quantized layers."""

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
        return function(x, weight, layer.bias)  # type: ignore[arg-type]

    def convert_weight(self, layer: nn.Module) -> None:
        """Does nothing."""
