"""Patch embeddings of accelerated models: their interface, non-overlapping and overlapping patches, convolutions."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import ConvStemSpec, PatchesSpec, SplitSpec
from vitfast.inference.modules.linear import InferenceLinear, describe_gemms
from vitfast.inference.modules.norm import InferenceNorm


class PatchEmbedding(nn.Module):
    """Base of all patch embeddings: images ``[B, in_chans, H, W]`` -> ``[B, N, C]``.

    Attributes:
        image_size: height and width of the images.
        in_chans: image channels.
        reads_pixels: whether the normalization of the images is included.
    """

    reads_pixels = False

    def __init__(self, image_size: tuple[int, int], in_chans: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.in_chans = in_chans

    @property
    def path(self) -> str:
        """What runs it, for the report."""
        raise NotImplementedError

    def grid(self, images: Tensor, num_patches: int) -> tuple[int, int]:
        """Rows and columns of the patches of ``images``; these are square except in subclasses."""
        return math.isqrt(num_patches), math.isqrt(num_patches)

    def tokens(self, images: Tensor, prefix: Tensor, positions: Tensor | None) -> Tensor:
        """Embeds patches, adds ``positions`` ``[N, C]`` and prepends ``prefix`` ``[T, C]``."""
        tokens = self(images.to(prefix.dtype))
        if positions is not None:
            tokens = tokens + positions.to(tokens.dtype)
        return torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1) if len(prefix) else tokens


class Patches(PatchEmbedding):
    """Projects non-overlapping patches."""

    def __init__(self, spec: PatchesSpec, linear: InferenceLinear, norm: nn.Module, *, reads_pixels: bool) -> None:
        super().__init__(spec.image_size, spec.in_chans)
        self.patch_size = spec.patch_size
        self.padding = spec.padding
        self.linear = linear
        self.norm = norm
        self.reads_pixels = reads_pixels

    @property
    def path(self) -> str:
        return describe_gemms(self.linear)

    def grid(self, images: Tensor, num_patches: int) -> tuple[int, int]:
        height, width = self.padded(images).shape[-2:]
        return height // self.patch_size[0], width // self.patch_size[1]

    def padded(self, images: Tensor) -> Tensor:
        """Pads or crops images to whole patches."""
        if tuple(images.shape[-2:]) == self.image_size:
            return F.pad(images, self.padding) if any(self.padding) else images
        rows, columns = (size // patch * patch for size, patch in zip(images.shape[-2:], self.patch_size, strict=True))
        return images[..., :rows, :columns]

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.patch_size
        patches = self.padded(images).unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, N, in_chans * rows * columns]
        return self.norm(self.linear(patches))


class ConvStem(PatchEmbedding):
    """Convolutions on torch operators."""

    def __init__(self, spec: ConvStemSpec, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(spec.image_size, spec.in_chans)
        self.dtype = dtype
        self.layers = spec.layers.to(device, dtype)

    @property
    def path(self) -> str:
        return f"torch convolutions, {str(self.dtype).removeprefix('torch.')}, BatchNorm folded"

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)


class ConvNeck(nn.Module):
    """Convolutions of the tokens on their grid, on torch operators; ``layers``: what is copied."""

    def __init__(self, layers: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.layers = copy.deepcopy(layers).to(device, dtype).eval().requires_grad_(False)

    @property
    def path(self) -> str:
        """What runs it, for the report."""
        return f"torch convolutions, {str(self.dtype).removeprefix('torch.')}"

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Reads ``tokens`` ``[B, N, C]`` on ``grid``; returns ``[B, N, O]``."""
        as_image = tokens.to(self.dtype).transpose(1, 2).unflatten(2, grid)
        out: Tensor = self.layers(as_image).flatten(2).transpose(1, 2)
        return out


class SplitLinear(nn.Module):
    """``linear(norm(patches))`` of patches that may overlap.

    Tokens are read in channels-last order: their grid is an image ``[B, 1, G, G * D]``, whose patches of P x (P * D)
    hold (row, column, channel). The columns of ``linear`` and ``norm`` are in that order.

    Args:
        split: the patches.
        norm: before the layer, or None.
        linear: the layer.
        token_dim: channels D of the tokens that are split; None: images are split.
    """

    def __init__(
        self, split: SplitSpec, norm: InferenceNorm | None, linear: InferenceLinear, token_dim: int | None
    ) -> None:
        super().__init__()
        width = token_dim or 1
        self.split = split
        self.token_dim = token_dim
        self.patch = (split.patch_size, split.patch_size * width)
        self.stride = (split.stride, split.stride * width)
        self.padding = (split.padding, split.padding * width)
        self.norm = norm
        self.linear = linear

    def grid_size(self, size: int) -> int:
        """Patches along a side of ``size`` pixels or tokens; below 1 if not even one fits."""
        return (size + 2 * self.split.padding - self.split.patch_size) // self.split.stride + 1

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Reads images ``[B, I, H, W]`` or tokens ``[B, H * W, D]``, where ``grid`` is H, W; returns ``[B, N, C]``."""
        return self.project(x if self.token_dim is None else x.unflatten(1, (1, *grid)).flatten(3))

    def project(self, images: Tensor) -> Tensor:
        """Splits and projects images or a grid of tokens."""
        # one copy; twice as fast as F.unfold and a transpose
        (height, width), (down, across) = self.patch, self.stride
        above, left = self.padding
        windows = F.pad(images, (left, left, above, above)).unfold(2, height, down).unfold(3, width, across)
        patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.linear(patches if self.norm is None else self.norm(patches))
