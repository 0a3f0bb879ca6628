"""From an image to one token per patch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

PatchOrder = Literal["channels_first", "channels_last"]


def check_images(images: Tensor, in_chans: int, img_size: int) -> None:
    """Raises a TypeError or ValueError unless images are floating point, ``[B, in_chans, img_size, img_size]``."""
    if images.dim() != 4 or tuple(images.shape[1:]) != (in_chans, img_size, img_size):
        raise ValueError(
            f"images must have shape [B, {in_chans}, {img_size}, {img_size}], got {list(images.shape)}; resize them, "
            "or create the model with other img_size or in_chans"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}; convert and normalize them first")


class PatchEmbed(nn.Module):
    """Cuts square images into P x P patches and projects each to C channels (Dosovitskiy et al., 2021, eq. 1).

    ``patch_order`` is the order in which a patch's pixels are flattened, and thus the layout of the weight:

    ==================  =====================  =====================================  ========================
    patch_order         pixels                 ``proj.weight``                        systems
    ==================  =====================  =====================================  ========================
    ``channels_first``  (channel, row, col)    convolution, ``[C, in_chans, P, P]``   Google, timm, DeiT, vissl
    ``channels_last``   (row, col, channel)    linear, ``[C, P * P * in_chans]``      myrtle-vision
    ==================  =====================  =====================================  ========================

    Args:
        img_size: height and width of the images in pixels, a multiple of ``patch_size``.
        patch_size: height and width P of a patch in pixels.
        in_chans: channels of an image.
        dim: channels C of a token.
        patch_order: see above.
        bias: whether the projection has a bias.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        dim: int,
        *,
        patch_order: PatchOrder = "channels_first",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.patch_order = patch_order
        self.proj: nn.Conv2d | nn.Linear
        if patch_order == "channels_first":
            self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        else:
            self.proj = nn.Linear(patch_size * patch_size * in_chans, dim, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds ``images`` ``[B, in_chans, img_size, img_size]`` as ``[B, N, C]``, row by row.

        Raises:
            TypeError, ValueError: the images are not floating point, or have another shape.
        """
        check_images(images, self.in_chans, self.img_size)
        patches = self._flatten_patches(images)
        if not isinstance(self.proj, nn.Conv2d):
            return self.proj(patches)
        apply_as_matrix: Callable[[Tensor], Tensor] | None = getattr(self.proj, "apply_as_matrix", None)
        if apply_as_matrix is not None:  # a quantized convolution
            return apply_as_matrix(patches)
        # A GEMM, because F.conv2d is slower. Milliseconds, GEMM against convolution, at 224 x 224, float32, 2 threads,
        # Cascade Lake, torch 2.15: ViT-Ti/16 b1 0.57 : 0.75, b8 3.07 : 3.29; ViT-B/16 b1 1.24 : 1.86, b8 10.1 : 14.1;
        # ViT-B/32 b8 9.6 : 14.2.
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def _flatten_patches(self, images: Tensor) -> Tensor:
        patch = self.patch_size
        patches = images.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [B, in_chans, rows, P, cols, P]
        if self.patch_order == "channels_first":
            patches = patches.permute(0, 2, 4, 1, 3, 5)  # [B, rows, cols, in_chans, P, P]
        else:
            patches = patches.permute(0, 2, 4, 3, 5, 1)  # [B, rows, cols, P, P, in_chans]
        return patches.flatten(3).flatten(1, 2)  # [B, N, in_chans * P * P]

    def extra_repr(self) -> str:
        return f"img_size={self.img_size}, patch_size={self.patch_size}, patch_order={self.patch_order!r}"


class PaddedPatchEmbed(PatchEmbed):
    """``PatchEmbed`` of an image padded with zeros, as a convolution with padding computes it.

    Pixels on the right and at the bottom that do not fill a patch are left out.

    Args:
        img_size: height and width of the images in pixels, before the padding.
        padding: zeros on each side.
        patch_size, in_chans, dim: as in ``PatchEmbed``.
    """

    def __init__(self, img_size: int, patch_size: int, padding: int, in_chans: int, dim: int) -> None:
        covered = padded_grid_size(img_size, patch_size, padding) * patch_size
        super().__init__(covered, patch_size, in_chans, dim)
        end = covered - img_size - padding  # negative where pixels are left out
        self.padding = (padding, end, padding, end)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds the patches of ``images`` ``[B, in_chans, img_size, img_size]``; returns ``[B, N, C]``."""
        return super().forward(F.pad(images, self.padding) if any(self.padding) else images)


def padded_grid_size(img_size: int, patch_size: int, padding: int) -> int:
    """Returns the number of whole patches along a side of an image with ``padding`` zeros on each side."""
    return (img_size + 2 * padding) // patch_size
