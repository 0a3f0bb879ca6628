"""From an image to tokens by a stack of small convolutions."""

from __future__ import annotations

from torch import Tensor, nn


class ConvStem(nn.Sequential):
    """Convolutions of 3 x 3 with BatchNorm and ReLU, then one of 1 x 1 (after Xiao et al., 2021, "Early Convolutions").

    They replace the projection of whole patches and learn faster from few images. The first has stride 1, the
    log2(``stride``) others have stride 2. The channels double from ``dim`` / 4 up to ``dim``.

    Args:
        stride: pixels of a token along a side, a power of 2, at least 4.
        in_chans: channels of an image.
        dim: channels C of a token, a multiple of 4.
    """

    def __init__(self, stride: int, in_chans: int, dim: int) -> None:
        layers: list[nn.Module] = []
        for index in range(stride.bit_length()):
            channels = min(dim, dim // 4 << index)
            # the BatchNorm has the bias
            layers.append(nn.Conv2d(in_chans, channels, 3, stride=2 if index else 1, padding=1, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            in_chans = channels
        super().__init__(*layers, nn.Conv2d(dim, dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, size, size]`` into tokens ``[B, N, C]``, the grid row by row."""
        grid: Tensor = super().forward(images)  # [B, C, size / stride, size / stride]
        return grid.flatten(2).transpose(1, 2)
