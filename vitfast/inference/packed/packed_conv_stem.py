"""The convolutions that stand for a patch embedding, in an accelerated model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import ConvSpec, ConvStemSpec
from vitfast.inference.packed.packer import Packer


class PackedConvStem(nn.Module):
    """Convolutions in the type of the tokens, with their BatchNorms folded into them.

    Args:
        described: the convolutions.
        packer: takes their tensors over.
    """

    def __init__(self, described: ConvStemSpec, packer: Packer) -> None:
        super().__init__()
        self.image_size = described.image_size
        self.in_chans = described.in_chans
        arithmetic = "fp32" if packer.stream_dtype == torch.float32 else packer.precision
        self.path = f"torch's convolutions, {arithmetic}, BatchNorm folded"
        self.steps = [(one.stride, one.padding, one.relu) for one in described.convolutions]
        for index, one in enumerate(described.convolutions):
            weight, bias = _folded(one)
            place = (packer.device, packer.stream_dtype)
            self.register_buffer(f"weight{index}", weight.to(*place))
            self.register_buffer(f"bias{index}", None if bias is None else bias.to(*place))

    @property
    def num_patches(self) -> int:
        """Tokens of an image."""
        rows, columns = self.image_size
        for index, (stride, padding, _) in enumerate(self.steps):
            height, width = self.get_buffer(f"weight{index}").shape[2:]
            rows, columns = (rows + 2 * padding - height) // stride + 1, (columns + 2 * padding - width) // stride + 1
        return rows * columns

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, H, W]`` into tokens ``[B, N, C]``."""
        x = images
        for index, (stride, padding, relu) in enumerate(self.steps):
            x = F.conv2d(x, getattr(self, f"weight{index}"), getattr(self, f"bias{index}"), stride, padding)
            x = F.relu(x) if relu else x
        return x.flatten(2).transpose(1, 2)


def _folded(described: ConvSpec) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution that does what it and its BatchNorm do; computed in float64."""
    weight = described.weight.detach().clone()
    bias = None if described.bias is None else described.bias.detach().clone()
    if described.batch_norm is None:
        return weight, bias
    gamma, beta, mean, variance, eps = described.batch_norm
    scale = gamma.detach().double() / (variance.double() + eps).sqrt()
    shift = beta.detach().double() - mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    return (weight.double() * scale[:, None, None, None]).float(), shift.float()
