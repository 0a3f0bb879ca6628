"""Patches that do not overlap, of an accelerated model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import PatchesSpec
from vitfast.inference.packed.packed_block import path_of
from vitfast.inference.packed.packer import Packer


class PackedPatches(nn.Module):
    """Projects patches that do not overlap.

    Args:
        described: the patches.
        packer: packs.
    """

    def __init__(self, described: PatchesSpec, packer: Packer) -> None:
        super().__init__()
        self.image_size = described.image_size
        self.patch_size = described.patch_size
        self.in_chans = described.in_chans
        self.padding = described.padding
        order = None
        if described.order == "channels_last":
            sizes = (*described.patch_size, described.in_chans)
            order = torch.arange(described.linear.in_features).view(sizes).permute(2, 0, 1).flatten()
        normalization = packer.normalization
        # pixels are 8-bit numbers, which bfloat16 holds: in int8 their product would only be less exact
        own = "bf16" if packer.precision == "int8" else packer.precision
        linear = replace(described.linear, precision=described.linear.precision or own)
        # zeros around an image are zeros after the normalisation; FP16_32 rounds normalized images; in half precision
        # weights for pixels would be subnormal
        self.reads_pixels = (
            normalization is not None
            and order is None
            and max(self.padding) <= 0
            and linear.precision not in ("fp16", "fp16_32")
        )
        if normalization is not None and self.reads_pixels:
            pixels = described.patch_size[0] * described.patch_size[1]
            scale, shift = (values.repeat_interleave(pixels) for values in normalization.coefficients())
            self.linear = packer.linear_of_pixels(linear, scale, shift)
        else:
            self.linear = packer.linear(linear, column_order=order)
        self.norm = packer.optional_norm(described.norm)

    @property
    def num_patches(self) -> int:
        """Patches of an image of the usual size."""
        left, right, above, below = self.padding
        (height, width), (rows, columns) = self.image_size, self.patch_size
        return ((height + above + below) // rows) * ((width + left + right) // columns)

    @property
    def path(self) -> str:
        """What runs it."""
        return path_of(self.linear)

    def padded(self, images: Tensor) -> Tensor:
        """Pads or cuts ``images`` ``[B, in_chans, H, W]`` so that patches cover them."""
        if tuple(images.shape[-2:]) == self.image_size:
            return F.pad(images, self.padding) if any(self.padding) else images
        rows, columns = (size // patch * patch for size, patch in zip(images.shape[-2:], self.patch_size, strict=True))
        return images[..., :rows, :columns]

    def forward(self, images: Tensor) -> Tensor:
        """Embeds ``images`` ``[B, in_chans, H, W]``; returns ``[B, N, C]``."""
        rows, columns = self.patch_size
        patches = self.padded(images).unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, N, in_chans * rows * columns]
        out: Tensor = self.norm(self.linear(patches))
        return out
