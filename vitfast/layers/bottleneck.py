"""The residual unit of the ResNet in front of a ViT."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.layers.resnet_conventions import ResNetConventions
from vitfast.layers.std_conv import StdConv2d

NUM_GROUPS = 32
_EXPANSION = 4
_CHANNEL_NORM_EPS = 1e-5


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut (He et al., 2016), standardized and group-normalized.

    The stride is that of the 3 x 3 convolution. Unlike what "ResNet v2" means elsewhere, the norms follow the
    convolutions and the last activation follows the sum, as in Google's hybrids. The names are timm's.

    Args:
        in_chans: channels of the input.
        width: channels in the middle, a multiple of 32; the output has four times as many.
        stride: 1 or 2.
        projects: whether the shortcut is a convolution: where channels or sizes change.
        conventions: what published systems disagree on.
    """

    def __init__(
        self, in_chans: int, width: int, *, stride: int = 1, projects: bool, conventions: ResNetConventions
    ) -> None:
        super().__init__()
        out_chans, eps = _EXPANSION * width, conventions.group_norm_eps
        self.downsample = ShortcutProjection(in_chans, out_chans, stride, conventions) if projects else None
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


class ShortcutProjection(nn.Module):
    """The 1 x 1 convolution and norm of a shortcut whose channels or sizes change.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        stride: 1 or 2.
        conventions: what published systems disagree on.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int, conventions: ResNetConventions) -> None:
        super().__init__()
        self.conv = StdConv2d(in_chans, out_chans, 1, stride=stride, conventions=conventions)
        if conventions.projection_norm == "channel":
            self.norm = nn.GroupNorm(out_chans, out_chans, _CHANNEL_NORM_EPS)
        else:
            self.norm = nn.GroupNorm(NUM_GROUPS, out_chans, conventions.group_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Projects ``x`` ``[B, in_chans, height, width]``; returns ``[B, out_chans, height', width']``."""
        return self.norm(self.conv(x))
