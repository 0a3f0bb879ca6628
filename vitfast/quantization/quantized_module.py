"""Base classes of the quantized counterparts.

A quantized counterpart is a subclass of a module's class. ``quantize_`` changes the class of the module in place, so
parameters, their names, hooks and references to the module are unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.ops.autocast import autocast_off
from vitfast.quantization.arithmetic import Arithmetic, LinearMap
from vitfast.quantization.configs import QuantizationConfig

# "off": the code of the base class runs; "plain": nothing is rounded, but every layer is called, so that hooks see it;
# "observe": as "plain", and inputs are observed
Mode = Literal["quantized", "off", "plain", "observe"]

_FLOAT32 = Arithmetic()


@dataclass
class LayerQuantization:
    """Configuration and state of a quantized module."""

    config: QuantizationConfig | None  # None for a foreign module that only contains quantized ones
    arithmetic: Arithmetic
    calibrated: bool = False  # whether activations have been observed, where the arithmetic needs it
    mode: Mode = "quantized"

    @property
    def converted(self) -> bool:
        """Whether weights have been rounded permanently."""
        return self.arithmetic.converted


class QuantizedModule(nn.Module):
    """First base class of every quantized counterpart."""

    quantization: LayerQuantization

    @staticmethod
    def check(module: nn.Module, arithmetic: Arithmetic) -> None:
        """Raises a UserError if the counterpart does not support an option of ``module``, before any change."""

    @property
    def is_off(self) -> bool:
        """Whether the code of the base class runs."""
        return self.quantization.mode == "off"

    @property
    def arithmetic(self) -> Arithmetic:
        """The configured arithmetic, or float32 in the other modes."""
        return self.quantization.arithmetic if self.quantization.mode == "quantized" else _FLOAT32

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Rounds a stored result, in place if nothing else reads ``x``."""
        return self.arithmetic.round("stored", x, in_place=in_place)

    def convert(self) -> None:
        """Rounds the module's weight in place."""
        self.quantization.arithmetic = replace(self.quantization.arithmetic, converted=True)
        self._round_weight()

    def _round_weight(self) -> None:
        if isinstance(getattr(self, "weight", None), Tensor):
            self.quantization.arithmetic.convert_weight(self)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.quantization.converted:  # the checkpoint may be of a float32 model
            self._round_weight()


class QuantizedLinearBase(QuantizedModule):
    """Base class for linear layers and convolutions."""

    weight: Any  # a parameter, or a property of the counterpart
    bias: Any

    def compute(self, function: LinearMap, x: Tensor, weight: Tensor) -> Tensor:
        """Computes ``function(x, weight, bias)`` in the layer's arithmetic, in float32 under any autocast."""
        with autocast_off(x):
            x = x.to(weight.dtype)
            if self.quantization.mode == "observe":
                self.quantization.arithmetic.observe(self, x)
            return self.arithmetic.linear(self, function, x, weight)

    def apply_as_matrix(self, x: Tensor) -> Tensor:
        """Multiplies ``x`` ``[..., K]`` by the weight, flattened to ``[out, K]``."""
        weight = self.weight.flatten(1)
        return F.linear(x, weight, self.bias) if self.is_off else self.compute(F.linear, x, weight)
