"""The twins of the hybrid of a ResNet and a ViT."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vitfast.layers.same_padding import pad_same
from vitfast.layers.std_conv import StdConv2d
from vitfast.models import HybridViT
from vitfast.quantization.quantized_module import QuantizedProduct
from vitfast.quantization.vitfast_models import QuantizedVisionTransformer


class QuantizedHybridViT(QuantizedVisionTransformer, HybridViT):
    """Twin of ``HybridViT``."""


class QuantizedStdConv2d(QuantizedProduct, StdConv2d):
    """Twin of ``StdConv2d``: what is rounded are the standardized kernels, in every pass, also once converted.

    Kernels that were rounded for good would be standardized afterwards, and no numbers of the format any more.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolves ``[B, in_chans, height, width]``."""
        if self.is_off:
            return super().forward(x)
        if self.conventions.padding == "same":
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return self.product(self._convolve, x, self.standardized_weight(), channel_dim=1)

    def convert(self) -> None:
        """Leaves the kernels to the forward pass."""

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding)
