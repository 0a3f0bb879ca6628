"""How a quantized layer computes: the interface, and the arithmetic of rounded operands and results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitfast.layers.fusion import take_in_place
from vitfast.quantization.in_place import round_in_place
from vitfast.quantization.rounded_weight import rounded_weight
from vitfast.quantization.rounders import FloatRounder, Rounder

# (x, weight, bias) -> result: F.linear, or a convolution with its stride and padding
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class FusedNorm(NamedTuple):
    """What a LayerNorm rounds in its own pass over memory."""

    operand: FloatRounder | None
    result: FloatRounder | None


class Arithmetic(ABC):
    """What a configuration does to a layer. One object serves many layers; a layer's own state are its buffers."""

    @property
    def needs_calibration(self) -> bool:
        """Whether activations have to be observed before the first forward pass."""
        return False

    @property
    def rounds_results(self) -> bool:
        """Whether stored results are rounded."""
        return False

    @abstractmethod
    def product(
        self, layer: nn.Module, function: Product, x: Tensor, weight: Tensor, *, converted: bool, channel_dim: int
    ) -> Tensor:
        """Computes ``function(x, weight, layer.bias)`` in float32.

        Args:
            layer: holds the bias, and buffers of this arithmetic.
            function: a linear layer or a convolution.
            x: the layer's input.
            weight: of the layer, perhaps flattened; its first dimension are the output channels.
            converted: whether ``convert_weight`` was called.
            channel_dim: which dimension of the result are the channels: -1 or 1.
        """

    @abstractmethod
    def convert_weight(self, layer: nn.Module) -> None:
        """Rounds the weight of a linear layer or convolution in place."""

    def prepare_product(self, layer: nn.Module) -> None:  # noqa: B027 (most need none)
        """Adds the buffers that a linear layer or convolution needs; none is part of the state dict."""

    def observe(self, layer: nn.Module, x: Tensor) -> None:  # noqa: B027
        """Looks at the input of a linear layer or convolution, in calibration."""

    def operand(self, x: Tensor, *, converted: bool) -> Tensor:
        """Rounds what a LayerNorm reads."""
        return x

    def result(self, x: Tensor, *, converted: bool) -> Tensor:
        """Rounds what a LayerNorm writes."""
        return x

    def convert_gamma(self, layer: nn.Module) -> None:  # noqa: B027
        """Rounds the weight of a LayerNorm in place."""

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Rounds the result of a residual addition, a concatenation of tokens or an addition of positions.

        ``in_place``: nothing else reads ``x``, so that it may be overwritten.
        """
        return x

    def fused_norm(self, *, converted: bool) -> FusedNorm | None:
        """Returns the roundings of a LayerNorm if they can run within the operator, else None."""
        return None


@dataclass(frozen=True)
class RoundedArithmetic(Arithmetic):
    """Operands of products and LayerNorms are rounded, products accumulate in float32, results may be rounded.

    Biases, statistics and everything within attention are never rounded, and neither is GELU's result, which the next
    layer rounds when it reads it.

    Attributes:
        rounder: rounds.
        round_results: whether stored results are rounded, too: FP16_16 against FP16_32.
        legacy_convert: whether converted layers round no activations any more, as in myrtle-vision.
    """

    rounder: Rounder
    round_results: bool = False
    legacy_convert: bool = False

    @property
    def rounds_results(self) -> bool:
        """Whether stored results are rounded."""
        return self.round_results

    def product(
        self, layer: nn.Module, function: Product, x: Tensor, weight: Tensor, *, converted: bool, channel_dim: int
    ) -> Tensor:
        """See ``Arithmetic``."""
        weight = weight if converted else rounded_weight(layer, weight, self.rounder)
        product = function(self.operand(x, converted=converted), weight, layer.bias)  # type: ignore[arg-type]
        return round_in_place(self.rounder, product) if self._rounds_result(converted) else product

    def convert_weight(self, layer: nn.Module) -> None:
        """See ``Arithmetic``."""
        with torch.no_grad():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            weight.copy_(self.rounder(weight))

    def convert_gamma(self, layer: nn.Module) -> None:
        """See ``Arithmetic``."""
        if layer.weight is not None:
            self.convert_weight(layer)

    def operand(self, x: Tensor, *, converted: bool) -> Tensor:
        """See ``Arithmetic``."""
        if not self._rounds_operand(converted):
            return x
        return round_in_place(self.rounder, x) if take_in_place(x) else self.rounder(x)

    def result(self, x: Tensor, *, converted: bool) -> Tensor:
        """See ``Arithmetic``."""
        return self.rounder(x) if self._rounds_result(converted) else x

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """See ``Arithmetic``."""
        if not self.round_results:
            return x
        return round_in_place(self.rounder, x) if in_place else self.rounder(x)

    def fused_norm(self, *, converted: bool) -> FusedNorm | None:
        """See ``Arithmetic``."""
        rounder = self.rounder
        if not isinstance(rounder, FloatRounder) or not rounder.can_fuse:
            return None
        return FusedNorm(
            rounder if self._rounds_operand(converted) else None, rounder if self._rounds_result(converted) else None
        )

    def _rounds_operand(self, converted: bool) -> bool:
        """Whether a layer's input is rounded."""
        return not (converted and self.legacy_convert)

    def _rounds_result(self, converted: bool) -> bool:
        """Whether a layer's result is rounded."""
        return self.round_results and not (converted and self.legacy_convert)


class NoArithmetic(Arithmetic):
    """Computes as in float32: for modules that are twins only because the layers within them are."""

    def product(
        self, layer: nn.Module, function: Product, x: Tensor, weight: Tensor, *, converted: bool, channel_dim: int
    ) -> Tensor:
        """See ``Arithmetic``."""
        return function(x, weight, layer.bias)  # type: ignore[arg-type]

    def convert_weight(self, layer: nn.Module) -> None:
        """Leaves the weight."""
