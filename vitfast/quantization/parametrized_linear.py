"""The twin of a linear layer whose weight is computed from other parameters (weight normalization)."""

from __future__ import annotations

from functools import cache

from torch import nn
from torch.nn.utils.parametrize import is_parametrized as has_parametrizations

from vitfast.quantization.generic_layers import QuantizedLinear
from vitfast.quantization.quantized_module import QuantizedModule


class QuantizedParametrizedLinear(QuantizedLinear):
    """What such twins have in common: the weight is never rounded for good, but in every forward pass.

    There is no tensor that could hold the rounded weight: what is saved are the parameters that it is computed from.
    The numbers are those of a layer that was converted.
    """

    def convert(self) -> None:
        """Leaves the weight to the forward pass."""


def is_parametrized(module: nn.Module) -> bool:
    """Whether a module is a linear layer that torch has given computed parameters."""
    if not isinstance(module, nn.Linear) or not has_parametrizations(module):
        return False
    return type(module).__mro__[1] is nn.Linear  # torch puts a class of its own before the layer's


@cache
def parametrized_twin(parametrized: type[nn.Module]) -> type[QuantizedModule]:
    """Returns the twin of the class that torch made for one module."""
    return type(f"Quantized{parametrized.__name__}", (QuantizedParametrizedLinear, parametrized), {})
