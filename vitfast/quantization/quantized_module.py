"""What a quantized module carries, and what all quantized twins have in common.

A twin is a subclass of a module's class. ``quantize_`` changes the class of the module in place, so that parameters,
their names, hooks and references to the module stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.errors import UserError
from vitfast.ops.autocast import autocast_off
from vitfast.quantization.arithmetic import Arithmetic, Product
from vitfast.quantization.configs import QuantizationConfig

Mode = Literal["quantized", "off", "plain", "observe"]


@dataclass
class LayerQuantization:
    """How a module is quantized, and what it does now.

    Attributes:
        config: None for a module that only makes room for quantized ones within it.
        arithmetic: made from the configuration.
        converted: whether weights have been rounded for good.
        calibrated: whether activations have been observed, where the arithmetic needs it.
        mode: ``"quantized"``; ``"off"``: the class's own code runs; ``"plain"``: nothing is rounded, but every layer is
            called as when it is (hooks see it); ``"observe"``: as plain, and inputs are observed.
    """

    config: QuantizationConfig | None
    arithmetic: Arithmetic
    converted: bool = False
    calibrated: bool = False
    mode: Mode = "quantized"


class QuantizedModule(nn.Module):
    """The first base class of every twin."""

    quantization: LayerQuantization

    @staticmethod
    def check(module: nn.Module, arithmetic: Arithmetic) -> None:
        """Refuses a module, before any is changed, whose options the twin does not know.

        Raises:
            UserError: saying which option.
        """

    @property
    def is_off(self) -> bool:
        """Whether the original class's code is to run."""
        return self.quantization.mode == "off"

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Rounds what an addition or concatenation stores, where the configuration says so; ``in_place``: in place."""
        quantization = self.quantization
        return quantization.arithmetic.stored(x, in_place=in_place) if quantization.mode == "quantized" else x

    def prepare(self) -> None:
        """Makes room for what the arithmetic needs."""

    def convert(self) -> None:
        """Rounds the module's own weights in place."""
        self.quantization.converted = True


class QuantizedProduct(QuantizedModule):
    """A linear layer or a convolution."""

    weight: Any  # a parameter, or a property of the twin
    bias: Any

    def product(self, function: Product, x: Tensor, weight: Tensor, channel_dim: int = -1) -> Tensor:
        """Computes ``function(x, weight, bias)`` in the layer's arithmetic, in float32 under any autocast.

        Raises:
            UserError: the activations are to be calibrated, and have not been.
        """
        quantization = self.quantization
        with autocast_off(x):
            x = x.to(weight.dtype)
            if quantization.mode != "quantized":
                if quantization.mode == "observe":
                    quantization.arithmetic.observe(self, x)
                return function(x, weight, self.bias)
            if quantization.arithmetic.needs_calibration and not quantization.calibrated:
                raise UserError(
                    "the model's activations are not calibrated; call vitfast.calibrate(model, loader) first, "
                    "or use Int8Config(activations='dynamic')"
                )
            return quantization.arithmetic.product(
                self, function, x, weight, converted=quantization.converted, channel_dim=channel_dim
            )

    def apply_as_matrix(self, x: Tensor) -> Tensor:
        """Multiplies ``x`` ``[..., K]`` by the weight, flattened to ``[out, K]``."""
        weight = self.weight.flatten(1)
        return F.linear(x, weight, self.bias) if self.is_off else self.product(F.linear, x, weight)

    def prepare(self) -> None:
        """Makes room for what the arithmetic needs."""
        self.quantization.arithmetic.prepare_product(self)

    def convert(self) -> None:
        """Rounds the weight in place."""
        super().convert()
        self.quantization.arithmetic.convert_weight(self)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.quantization.converted:  # any checkpoint may be loaded, a float32 one, too
            self.quantization.arithmetic.convert_weight(self)


class QuantizedNorm(QuantizedModule):
    """A LayerNorm."""

    def operand(self, x: Tensor) -> Tensor:
        """Rounds the input."""
        quantization = self.quantization
        if quantization.mode != "quantized":
            return x
        return quantization.arithmetic.operand(x, converted=quantization.converted)

    def result(self, x: Tensor) -> Tensor:
        """Rounds the output."""
        quantization = self.quantization
        if quantization.mode != "quantized":
            return x
        return quantization.arithmetic.result(x, converted=quantization.converted)

    def convert(self) -> None:
        """Rounds gamma in place."""
        super().convert()
        self.quantization.arithmetic.convert_gamma(self)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.quantization.converted:
            self.quantization.arithmetic.convert_gamma(self)
