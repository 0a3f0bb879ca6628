"""From an image to one token per patch of a ResNet's features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vitfast.layers.patch_embed import check_images
from vitfast.layers.resnet import ResNet, ResNetStem, resnet_channels
from vitfast.layers.std_conv import ResNetConventions


class HybridEmbed(nn.Module):
    """Cuts the features of a ResNet, instead of the image, into patches (Dosovitskiy et al., 2021, section 3.1).

    Args:
        patch_size: height and width of a patch in features; 1 in most hybrids.
        img_size, in_chans, dim: as in ``PatchEmbed``.
        layers: bottlenecks of each stage; empty for the stem alone.
        width, conventions: as in ``ResNetStem``.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        dim: int,
        *,
        layers: Sequence[int],
        width: int,
        conventions: ResNetConventions,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.in_chans = in_chans
        self.backbone: nn.Module
        if layers:
            self.backbone = ResNet(in_chans, layers, width, conventions)
        else:
            self.backbone = ResNetStem(in_chans, width, conventions)
        self.proj = nn.Conv2d(resnet_channels(layers, width), dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds the patches of ``images`` as ``PatchEmbed``; returns ``[B, N, C]``."""
        check_images(images, self.in_chans, self.img_size)
        return self.proj(self.backbone(images)).flatten(2).transpose(1, 2)
