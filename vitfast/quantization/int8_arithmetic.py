"""INT8 arithmetic, simulated exactly in floating point.

A product of two 8-bit integers has at most 16 bits, and float32 represents every integer up to 2**24: sums of up to 512
products are exact. Longer sums are accumulated in float64, also exactly. The simulation thus gives the integers of int8
hardware with 32-bit accumulators and rounds once, when they are converted to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.quantization.arithmetic import Arithmetic, LinearMap
from vitfast.quantization.rounders import round_to_integers

# 512 * 255 * 127 < 2**24; 255 is the largest difference of an activation and its zero point
_EXACT_LENGTH = 512


@dataclass(frozen=True)
class Int8Arithmetic(Arithmetic):
    """Symmetric int8 weights with one scale per output channel; int8 activations.

    Dynamic activations are symmetric with one scale per token (per image in a convolution). Calibrated activations have
    one scale and one zero point per tensor, from the smallest and largest observed value.
    """

    calibrated: bool = False  # instead of dynamic activations
    clip_gradients: bool = False  # clamped activations get no gradient

    def prepare_layer(self, layer: Any) -> None:
        layer.register_buffer("weight_scale", layer.weight.new_ones(len(layer.weight)), persistent=False)
        if self.calibrated:
            layer.register_buffer("activation_range", layer.weight.new_zeros(2), persistent=False)  # lowest, highest

    def observe(self, layer: Any, x: Tensor) -> None:
        if self.calibrated and x.numel():
            lowest, highest = x.detach().aminmax()
            seen = layer.activation_range
            seen.copy_(torch.stack([torch.minimum(seen[0], lowest), torch.maximum(seen[1], highest)]))

    def convert_weight(self, layer: Any) -> None:
        if isinstance(layer, nn.LayerNorm):
            return
        with torch.no_grad():
            layer.weight_scale.copy_(weight_scale(layer.weight))
            integers = quantize_weight(layer.weight, layer.weight_scale)
            layer.weight.copy_(integers * _on_first(layer.weight_scale, layer.weight.dim()))

    def linear(self, layer: Any, function: LinearMap, x: Tensor, weight: Tensor) -> Tensor:
        scale = layer.weight_scale if self.converted else weight_scale(weight)
        integers, x_scale = self.quantize_input(layer, x, weight.dim())
        out = integer_matmul(function, integers, quantize_weight(weight, scale))
        channels = weight.dim() - 1  # 1 in the result of a linear layer, 3 in that of a convolution
        out = out * (x_scale * _on_first(scale, channels))
        return out if layer.bias is None else out + _on_first(layer.bias, channels)

    def quantize_input(self, layer: Any, x: Tensor, weight_dim: int) -> tuple[Tensor, Tensor]:
        """Returns the input as integers minus their zero point, and the scale."""
        if not self.calibrated:
            return quantize_dynamic(x, dims=(-1,) if weight_dim == 2 else (1, 2, 3))
        if not layer.quantization.calibrated:
            raise UserError(
                "the model's activations are not calibrated; call vitfast.calibrate(model, loader) first, "
                "or use Int8Config(activations='dynamic')"
            )
        lowest, highest = layer.activation_range.unbind()
        scale = positive_scale((highest - lowest) / 255)
        # the zero point is an integer, so the range is shifted rather than x: 0 stays exactly 0
        low = (lowest / scale).round()
        shifted = round_to_integers(x / scale - low, 0, 255, clip_gradients=self.clip_gradients)
        return shifted + low, scale


def weight_scale(weight: Tensor) -> Tensor:
    """Returns the scale of each output channel ``[O]`` of a weight ``[O, ...]``: its largest magnitude becomes 127."""
    return positive_scale(weight.detach().flatten(1).abs().amax(1) / 127)


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Rounds a weight ``[O, ...]`` to integers -127 … 127 in units of the channels' ``scale`` ``[O]``."""
    return round_to_integers(weight / _on_first(scale, weight.dim()), -127, 127)


def quantize_dynamic(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Returns integers and their scale, which is 1 along ``dims``."""
    scale = positive_scale(x.detach().abs().amax(dims, keepdim=True) / 127)
    return round_to_integers(x / scale, -127, 127), scale


def integer_matmul(function: LinearMap, x: Tensor, weight: Tensor) -> Tensor:
    """Applies ``function`` to integers exactly, then rounds the result to float32."""
    if weight[0].numel() <= _EXACT_LENGTH:
        return function(x, weight, None)
    if weight.dim() == 4:
        return function(x.double(), weight.double(), None).to(x.dtype)
    chunks = zip(torch.split(x, _EXACT_LENGTH, -1), torch.split(weight, _EXACT_LENGTH, -1), strict=True)
    first, *others = (function(x_chunk, weight_chunk, None).double() for x_chunk, weight_chunk in chunks)
    return torch.stack([first, *others]).sum(0).to(x.dtype)


def _on_first(scale: Tensor, dims: int) -> Tensor:
    """Reshapes ``scale`` ``[O]`` to ``[O, 1, ...]``."""
    return scale.view(-1, *(1,) * (dims - 1))


def positive_scale(scale: Tensor) -> Tensor:
    """Replaces scales below float32's normal numbers, for example of all zeros, by 1."""
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, 1.0)
