"""Overlapping patches and the product that reads them, of an accelerated model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import LinearSpec, NormSpec, SplitSpec
from vitfast.inference.packed.packed_block import one_precision
from vitfast.inference.packed.packer import Packer


class PackedSplit(nn.Module):
    """``linear(norm(patches))`` of overlapping patches, in one operator where the two agree on the precision.

    Tokens are read as they lie, channels last: a grid of them is an image ``[B, 1, G, G * D]``, whose patches of
    P x (P * D) hold (row, column, channel). The columns of the weight and of the LayerNorm are put in that order.

    Args:
        split: the patches.
        norm: before the layer, or None.
        linear: the layer.
        packer: packs.
        token_dim: channels D of the tokens that it reads; None: it reads images.
    """

    def __init__(
        self,
        split: SplitSpec,
        norm: NormSpec | None,
        linear: LinearSpec,
        packer: Packer,
        *,
        token_dim: int | None = None,
    ) -> None:
        super().__init__()
        width, order = 1, None
        if token_dim is not None:
            width = token_dim
            order = torch.arange(linear.in_features).view(token_dim, split.patch_size**2).t().flatten()
        self.of_grid = split
        self.token_dim = token_dim
        self.patch = (split.patch_size, split.patch_size * width)
        self.stride = (split.stride, split.stride * width)
        self.padding = (split.padding, split.padding * width)
        self.norm = None if norm is None else packer.norm(norm, column_order=order)
        self.linear = packer.linear(linear, column_order=order)
        self.is_fused = (
            packer.has("packed_split_linear")
            and self.linear.is_packed
            and (self.norm is None or one_precision((self.norm,), (self.linear,)))
        )

    def grid_size(self, size: int) -> int:
        """Patches along a side of ``size`` pixels or tokens; below 1 where not even one fits."""
        return (size + 2 * self.of_grid.padding - self.of_grid.patch_size) // self.of_grid.stride + 1

    def forward(self, x: Tensor, size: int) -> Tensor:
        """Reads images ``[B, I, size, size]`` or tokens ``[B, size * size, D]``; returns ``[B, N, C]``."""
        if self.token_dim is not None:
            x = x.unflatten(1, (1, size, size)).flatten(3)
        norm, linear = self.norm, self.linear
        if not self.is_fused:
            patches = self._patches(x)
            separate: Tensor = linear(patches if norm is None else norm(patches))
            return separate
        out: Tensor = torch.ops.vitfast.packed_split_linear.default(
            x,
            self.patch,
            self.stride,
            self.padding,
            *((None, None, None) if norm is None else (norm.weight, norm.bias, norm.eps)),
            linear.packed,
            linear.bias,
            linear.out_features,
            linear.precision,
        )
        return out

    def _patches(self, x: Tensor) -> Tensor:
        """Gathers patches by one copy: twice as fast as ``F.unfold`` and its transposition."""
        (height, width), (down, across) = self.patch, self.stride
        above, left = self.padding
        windows = F.pad(x, (left, left, above, above)).unfold(2, height, down).unfold(3, width, across)
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
