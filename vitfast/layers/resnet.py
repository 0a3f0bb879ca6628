"""The ResNet in front of a hybrid Vision Transformer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.layers.std_conv import ResNetConventions, ResNetPadding, StdConv2d, pad_same

_POOL_SIZE, _POOL_STRIDE = 3, 2
NUM_GROUPS = 32
_EXPANSION = 4
_CHANNEL_NORM_EPS = 1e-5


class Bottleneck(nn.Module):
    """Standardized 1 x 1, 3 x 3 and 1 x 1 convolutions with GroupNorm and a shortcut (He et al., 2016).

    The 3 x 3 convolution has the stride. The norms follow the convolutions and the last activation follows the sum, as
    in Google's hybrids and unlike "ResNet v2" elsewhere. Parameter names are timm's.

    Args:
        in_chans: channels of the input.
        width: channels in the middle, a multiple of 32; the output has four times as many.
        stride: 1 or 2.
        projects: whether the shortcut is a convolution, needed where channels or sizes change.
        conventions: see ``ResNetConventions``.
    """

    def __init__(
        self, in_chans: int, width: int, *, stride: int = 1, projects: bool, conventions: ResNetConventions
    ) -> None:
        super().__init__()
        out_chans, eps = _EXPANSION * width, conventions.group_norm_eps
        self.downsample = _projection(in_chans, out_chans, stride, conventions) if projects else None
        self.conv1 = StdConv2d(in_chans, width, 1, conventions=conventions)
        self.norm1 = nn.GroupNorm(NUM_GROUPS, width, eps)
        self.conv2 = StdConv2d(width, width, 3, stride=stride, conventions=conventions)
        self.norm2 = nn.GroupNorm(NUM_GROUPS, width, eps)
        self.conv3 = StdConv2d(width, out_chans, 1, conventions=conventions)
        self.norm3 = nn.GroupNorm(NUM_GROUPS, out_chans, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms ``x`` ``[B, in_chans, height, width]``; returns ``[B, out_chans, height', width']``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(shortcut + self.norm3(self.conv3(x)))


def _projection(in_chans: int, out_chans: int, stride: int, conventions: ResNetConventions) -> nn.Sequential:
    """Makes the 1 x 1 convolution and norm of a shortcut whose channels or sizes change."""
    conv = StdConv2d(in_chans, out_chans, 1, stride=stride, conventions=conventions)
    if conventions.projection_norm == "channel":
        norm = nn.GroupNorm(out_chans, out_chans, _CHANNEL_NORM_EPS)
    else:
        norm = nn.GroupNorm(NUM_GROUPS, out_chans, conventions.group_norm_eps)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm))


class ResNetStem(nn.Module):
    """A 7 x 7 convolution of stride 2, GroupNorm, ReLU and a 3 x 3 maximum of stride 2: a quarter of the image's size.

    Args:
        in_chans: channels of an image.
        width: channels of the output, a multiple of 32.
        conventions: see ``ResNetConventions``.
    """

    def __init__(self, in_chans: int, width: int, conventions: ResNetConventions) -> None:
        super().__init__()
        self.conv = StdConv2d(in_chans, width, 7, stride=2, conventions=conventions)
        self.norm = nn.GroupNorm(NUM_GROUPS, width, conventions.group_norm_eps)
        self.padding = conventions.padding

    def forward(self, x: Tensor) -> Tensor:
        """Computes the first features ``[B, width, rows, columns]`` of images ``[B, in_chans, height, width]``."""
        x = F.relu(self.norm(self.conv(x)))
        if self.padding == "same":
            x = pad_same(x, _POOL_SIZE, _POOL_STRIDE, value=-torch.inf)
        return F.max_pool2d(x, _POOL_SIZE, _POOL_STRIDE)


class ResNet(nn.Module):
    """The stem, then stages of bottlenecks; each but the first halves the size and doubles the channels.

    Parameter names are timm's: ``stem``, ``stages.0.blocks.1`` …

    Args:
        layers: bottlenecks of each stage; at least one stage.
        in_chans, width, conventions: as in ``ResNetStem``.
    """

    def __init__(self, in_chans: int, layers: Sequence[int], width: int, conventions: ResNetConventions) -> None:
        super().__init__()
        self.stem = ResNetStem(in_chans, width, conventions)
        self.stages = nn.Sequential()
        channels = width
        for index, depth in enumerate(layers):
            stage_width = width * 2**index
            blocks = nn.Sequential()
            for block in range(depth):
                stride = 2 if index and not block else 1
                blocks.append(
                    Bottleneck(channels, stage_width, stride=stride, projects=not block, conventions=conventions)
                )
                channels = 4 * stage_width
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the features ``[B, C, rows, columns]`` of images ``[B, in_chans, height, width]``."""
        return self.stages(self.stem(x))


def resnet_channels(layers: Sequence[int], width: int) -> int:
    """Returns the channels of the features of a ``ResNet``, or of the stem if ``layers`` is empty."""
    return 4 * width * 2 ** (len(layers) - 1) if layers else width


def resnet_grid_size(img_size: int, num_stages: int, padding: ResNetPadding) -> int:
    """Returns the features along a side of a square image; 0 if the image is too small."""
    size = (img_size + 1) // 2
    size = (size + 1) // 2 if padding == "same" else (size - _POOL_SIZE) // _POOL_STRIDE + 1
    for _ in range(num_stages - 1):
        size = (size + 1) // 2
    return max(size, 0)
