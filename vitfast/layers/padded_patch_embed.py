"""Patches of an image whose size they do not divide."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vitfast.layers.patch_embed import PatchEmbed


class PaddedPatchEmbed(PatchEmbed):
    """``PatchEmbed`` of an image with zeros around it, as a convolution with padding.

    What is left on the right and at the bottom when the last whole patch is cut stays out.

    Args:
        img_size: height and width of the images in pixels, before the padding.
        patch_size: height and width P of a patch in pixels.
        padding: zeros on each side.
        in_chans: channels of an image.
        dim: channels C of a token.
    """

    def __init__(self, img_size: int, patch_size: int, padding: int, in_chans: int, dim: int) -> None:
        covered = padded_grid_size(img_size, patch_size, padding) * patch_size
        super().__init__(covered, patch_size, in_chans, dim)
        end = covered - img_size - padding  # negative where something stays out
        self.padding = (padding, end, padding, end)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds the patches of ``images`` ``[B, in_chans, img_size, img_size]``; returns ``[B, N, C]``."""
        return super().forward(F.pad(images, self.padding) if any(self.padding) else images)


def padded_grid_size(img_size: int, patch_size: int, padding: int) -> int:
    """Whole patches along a side of an image with ``padding`` zeros on each side."""
    return (img_size + 2 * padding) // patch_size
