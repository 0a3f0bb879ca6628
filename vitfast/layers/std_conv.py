"""Convolution with weight standardization."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.layers.resnet_conventions import ResNetConventions
from vitfast.layers.same_padding import pad_same

# far below any epsilon: the root's gradient is infinite at zero, where a kernel holds one number only
_LEAST_VARIANCE = 1e-30


class StdConv2d(nn.Conv2d):
    """A convolution without bias whose kernels are brought to mean 0 and variance 1 (Qiao et al., 2019, eq. 4).

    Every output channel has its own mean and variance, over the input channels and the window.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        kernel_size: height and width of the window, odd.
        stride: distance between windows.
        conventions: padding, and how the standardization is guarded.
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
        if self.conventions.padding == "same":
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, self.standardized_weight(), None, self.stride, self.padding)

    def standardized_weight(self) -> Tensor:
        """Computes the kernels that convolve, ``[out_chans, in_chans, P, P]``, in float32 at least."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        eps = self.conventions.weight_eps
        if self.conventions.weight_eps_place == "variance":
            deviation = (variance + eps).sqrt()
        else:
            deviation = variance.clamp_min(_LEAST_VARIANCE).sqrt() + eps
        return ((weight - mean) / deviation).to(self.weight.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in parentheses."""
        return f"{super().extra_repr()}, {self.conventions}"
