"""Overlapping patches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SoftSplit(nn.Module):
    """Cuts an image, or a grid of tokens, into overlapping P x P patches (Yuan et al., 2021, section 3.1).

    Args:
        patch_size: height and width P of a patch.
        stride: distance between neighbouring patches.
        padding: zeros added on each side.
    """

    def __init__(self, patch_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stride = stride
        self.padding = padding

    def grid_size(self, size: int) -> int:
        """Patches along a side of ``size``; below 1 where not even one fits."""
        return (size + 2 * self.padding - self.patch_size) // self.stride + 1

    def forward(self, images: Tensor) -> Tensor:
        """Flattens the patches of ``images`` ``[B, C, size, size]``, row by row.

        Returns:
            ``[B, N, C * P * P]``, a patch's values in the order (channel, row, column).
        """
        patches = F.unfold(images, self.patch_size, padding=self.padding, stride=self.stride)
        return patches.transpose(1, 2)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in parentheses."""
        return f"patch_size={self.patch_size}, stride={self.stride}, padding={self.padding}"
