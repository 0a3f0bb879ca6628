"""The ResNet in front of a hybrid Vision Transformer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.layers.bottleneck import NUM_GROUPS, Bottleneck
from vitfast.layers.resnet_conventions import ResNetConventions, ResNetPadding
from vitfast.layers.same_padding import pad_same
from vitfast.layers.std_conv import StdConv2d

_POOL_SIZE, _POOL_STRIDE = 3, 2


class ResNetStem(nn.Module):
    """A 7 x 7 convolution of stride 2, GroupNorm, ReLU and a 3 x 3 maximum of stride 2: a quarter of the image's size.

    Args:
        in_chans: channels of an image.
        width: channels of the output, a multiple of 32.
        conventions: what published systems disagree on.
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

    The names are timm's: ``stem``, ``stages.0.blocks.1`` …

    Args:
        in_chans: channels of an image.
        layers: bottlenecks of each stage; at least one stage.
        width: channels of the stem, a multiple of 32.
        conventions: what published systems disagree on.
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
    """Channels of the features of a ``ResNet``, or of the stem alone where there are no layers."""
    return 4 * width * 2 ** (len(layers) - 1) if layers else width


def resnet_grid_size(img_size: int, num_stages: int, padding: ResNetPadding) -> int:
    """Features along a side of a square image; 0 where the image is too small."""
    size = (img_size + 1) // 2
    size = (size + 1) // 2 if padding == "same" else (size - _POOL_SIZE) // _POOL_STRIDE + 1
    for _ in range(num_stages - 1):
        size = (size + 1) // 2
    return max(size, 0)
