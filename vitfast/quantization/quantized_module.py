"""Base classes of the quantized counterparts.

A quantized counterpart is a subclass of a module's class. ``quantize_`` changes the class of the module in place, so
parameters, their names, hooks and references to the module are unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.errors import UserError
from vitfast.ops.autocast import autocast_off
from vitfast.quantization.arithmetic import Arithmetic, LinearMap
from vitfast.quantization.configs import QuantizationConfig

Mode = Literal["quantized", "off", "plain", "observe"]


@dataclass
class LayerQuantization:
    """Configuration and state of a quantized module.

    Attributes:
        config: None for a foreign module that only contains quantized ones.
        arithmetic: made from the configuration.
        converted: whether weights have been rounded permanently.
        calibrated: whether activations have been observed, where the arithmetic needs it.
        mode: ``"quantized"``; ``"off"``: the code of the base class runs; ``"plain"``: nothing is rounded, but every
            layer is called, so that hooks see it; ``"observe"``: as ``"plain"``, and inputs are observed.
    """

    config: QuantizationConfig | None
    arithmetic: Arithmetic
    converted: bool = False
    calibrated: bool = False
    mode: Mode = "quantized"


class QuantizedModule(nn.Module):
    """First base class of every quantized counterpart."""

    quantization: LayerQuantization

    @staticmethod
    def check(module: nn.Module, arithmetic: Arithmetic) -> None:
        """Checks that the counterpart supports the options of ``module``, before any module is changed.

        Raises:
            UserError: naming the option.
        """

    @property
    def is_off(self) -> bool:
        """Whether the code of the base class runs."""
        return self.quantization.mode == "off"

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Rounds a stored result, in place if nothing else reads ``x``."""
        quantization = self.quantization
        return quantization.arithmetic.stored(x, in_place=in_place) if quantization.mode == "quantized" else x

    def prepare(self) -> None:
        """Adds the buffers that the arithmetic needs."""

    def convert(self) -> None:
        """Rounds the module's weights in place."""
        self.quantization.converted = True
        self._round_weights()

    def _round_weights(self) -> None:
        pass

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.quantization.converted:  # the checkpoint may be of a float32 model
            self._round_weights()


class QuantizedLinearBase(QuantizedModule):
    """Base class for linear layers and convolutions."""

    weight: Any  # a parameter, or a property of the counterpart
    bias: Any

    def compute(self, function: LinearMap, x: Tensor, weight: Tensor, channel_dim: int = -1) -> Tensor:
        """Computes ``function(x, weight, bias)`` in the layer's arithmetic, in float32 under any autocast.

        Raises:
            UserError: activations must be calibrated and are not.
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
            return quantization.arithmetic.linear(
                self, function, x, weight, converted=quantization.converted, channel_dim=channel_dim
            )

    def apply_as_matrix(self, x: Tensor) -> Tensor:
        """Multiplies ``x`` ``[..., K]`` by the weight, flattened to ``[out, K]``."""
        weight = self.weight.flatten(1)
        return F.linear(x, weight, self.bias) if self.is_off else self.compute(F.linear, x, weight)

    def prepare(self) -> None:
        self.quantization.arithmetic.prepare_layer(self)

    def _round_weights(self) -> None:
        self.quantization.arithmetic.convert_weight(self)


class QuantizedNorm(QuantizedModule):
    """Base class for LayerNorms."""

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

    def _round_weights(self) -> None:
        self.quantization.arithmetic.convert_gamma(self)
