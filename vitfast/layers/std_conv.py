"""Convolution with weight standardization, and the conventions in which published ResNets differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ResNetPadding = Literal["same", "symmetric"]
WeightEpsPlace = Literal["deviation", "variance"]
ProjectionNorm = Literal["group", "channel"]

# far below any epsilon; the gradient of the root is infinite at zero, the variance of a kernel with one element
_LEAST_VARIANCE = 1e-30


@dataclass(frozen=True)
class ResNetConventions:
    """Details in which systems differ; the defaults are Google's.

    ================  ===============  ===============  ===============
    field             Google (JAX)     timm             ViT-pytorch
    ================  ===============  ===============  ===============
    padding           ``same``         ``same``         ``symmetric``
    weight_eps        1e-5             1e-8             1e-5
    weight_eps_place  ``deviation``    ``variance``     ``variance``
    group_norm_eps    1e-6             1e-5             1e-6
    projection_norm   ``group``        ``group``        ``channel``
    ================  ===============  ===============  ===============

    ``padding="same"`` is described in ``pad_same``; ``"symmetric"`` is half a kernel on each side of a convolution and
    none around the pooling of the stem.
    """

    padding: ResNetPadding = "same"
    weight_eps: float = 1e-5  # added to what divides a kernel: its standard deviation, or the variance
    weight_eps_place: WeightEpsPlace = "deviation"
    group_norm_eps: float = 1e-6
    projection_norm: ProjectionNorm = "group"  # of a shortcut; "channel": one group per channel, with epsilon 1e-5


class StdConv2d(nn.Conv2d):
    """A convolution without bias whose kernels are standardized to mean 0 and variance 1 (Qiao et al., 2019, eq. 4).

    Mean and variance of each output channel are taken over the input channels and the window.

    Args:
        in_chans, out_chans, stride: as in ``torch.nn.Conv2d``.
        kernel_size: height and width of the window, odd.
        conventions: padding, and epsilon of the standardization.
    """

    def __init__(
        self, in_chans: int, out_chans: int, kernel_size: int, *, stride: int = 1, conventions: ResNetConventions
    ) -> None:
        symmetric = conventions.padding == "symmetric"
        padding = kernel_size // 2 if symmetric else 0
        super().__init__(in_chans, out_chans, kernel_size, stride=stride, padding=padding, bias=False)
        self.conventions = conventions

    def forward(self, x: Tensor) -> Tensor:
        """Convolves ``x`` ``[B, in_chans, height, width]``; returns ``[B, out_chans, height', width']``."""
        return self._conv_forward(self.padded(x), self.standardized_weight(), None)

    def padded(self, x: Tensor) -> Tensor:
        """Returns ``x`` with the padding that the convolution itself does not add."""
        return pad_same(x, self.kernel_size[0], self.stride[0]) if self.conventions.padding == "same" else x

    def standardized_weight(self) -> Tensor:
        """Returns the standardized kernels ``[out_chans, in_chans, P, P]``, computed in float32 or wider."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        eps = self.conventions.weight_eps
        if self.conventions.weight_eps_place == "variance":
            deviation = (variance + eps).sqrt()
        else:
            deviation = variance.clamp_min(_LEAST_VARIANCE).sqrt() + eps
        return ((weight - mean) / deviation).to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.conventions}"


def pad_same(x: Tensor, kernel_size: int, stride: int, *, value: float = 0.0) -> Tensor:
    """Pads as ``padding="SAME"`` of JAX does, so that a window of stride s gives ceil(size / s) results.

    If the number of padded rows or columns is odd, the extra one is at the bottom or on the right. This differs from a
    symmetric padding at stride 2 and an even size.

    Returns:
        ``x`` ``[B, C, height, width]`` padded with ``value``; ``x`` itself if no padding is needed.
    """
    padding = (*_same_padding(x.shape[-1], kernel_size, stride), *_same_padding(x.shape[-2], kernel_size, stride))
    return F.pad(x, padding, value=value) if any(padding) else x


def _same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Returns the padding before and after."""
    windows = -(-size // stride)
    padding = max((windows - 1) * stride + kernel_size - size, 0)
    return padding // 2, padding - padding // 2
