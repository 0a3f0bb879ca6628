"""The tokens-to-token module of an accelerated model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.packed.packed_block import PackedMlp, PackedNormLinear, path_of
from vitfast.inference.packed.packer import Packer
from vitfast.inference.stem_description import TokenMixer, TokensToToken
from vitfast.layers.performer_attention import performer_attention
from vitfast.layers.soft_split import SoftSplit


class PackedTokenMixer(nn.Module):
    """An attention layer of the tokens-to-token module.

    Args:
        described: the layer.
        packer: packs.
    """

    projection: Tensor | None

    def __init__(self, described: TokenMixer, packer: Packer) -> None:
        super().__init__()
        self.linear = PackedNormLinear(packer.norm(described.norm1), packer.linear(described.linear))
        self.scale = described.scale
        self.register_buffer("projection", packer.keep(described.projection))
        self.proj = packer.linear(described.proj)
        self.mlp = PackedMlp(described.norm2, described.mlp, packer)

    @property
    def operators(self) -> tuple[str, ...]:
        """Those of vitfast that it calls itself."""
        return () if self.projection is not None else ("attention",)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens ``x`` ``[B, N, C]`` to ``[B, N, D]``."""
        mixed = self.linear(x)
        v = mixed.chunk(3, dim=-1)[2].contiguous()
        if self.projection is not None:
            k, q, _ = mixed.chunk(3, dim=-1)
            attended = performer_attention(q, k, v, self.projection)
        else:
            attended = ops.attention_packed(mixed.unflatten(-1, (3, 1, -1)), scale=self.scale).squeeze(2)
        x = self.proj(attended, residual=v)
        out: Tensor = self.mlp(x, x)
        return out


class PackedTokensToToken(nn.Module):
    """Overlapping patches in three steps.

    Args:
        described: the module.
        packer: packs.
    """

    def __init__(self, described: TokensToToken, packer: Packer) -> None:
        super().__init__()
        self.image_size = described.image_size
        self.in_chans = described.in_chans
        self.image_by_image = packer.image_by_image
        self.splits: Any = nn.ModuleList(SoftSplit(one.patch_size, one.stride, one.padding) for one in described.splits)
        self.mixers = nn.ModuleList(PackedTokenMixer(one, packer) for one in described.mixers)
        self.project = packer.linear(described.project)

    @property
    def num_patches(self) -> int:
        """Tokens of an image of the usual size."""
        grid = self.image_size[0]
        for split in self.splits:
            grid = split.grid_size(grid)
        return grid**2

    @property
    def path(self) -> str:
        """What runs it."""
        return f"{path_of(self.project)}, tokens to tokens"

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, size, size]`` into tokens ``[B, N, C]``."""
        if self.image_by_image and len(images) > 1:  # as in vitfast.layers.TokensToToken
            x = torch.cat([self._mixed(image) for image in images.split(1)])
        else:
            x = self._mixed(images)
        tokens: Tensor = self.project(self._split(self.splits[-1], x))
        return tokens

    def _mixed(self, x: Tensor) -> Tensor:
        """Splits and mixes, but for the last split; an image of tokens ``[B, D, G, G]``."""
        grid = x.shape[-1]
        for split, mixer in zip(self.splits[:-1], self.mixers, strict=True):
            tokens = mixer(self._split(split, x))
            grid = split.grid_size(grid)
            x = tokens.transpose(1, 2).unflatten(2, (grid, grid))
        return x

    def _split(self, split: SoftSplit, x: Tensor) -> Tensor:
        """Runs a ``SoftSplit``; for all images at once by one copy, where torch's operator takes image by image."""
        if self.image_by_image:
            patches: Tensor = split(x)
            return patches
        padded = F.pad(x, (split.padding,) * 4)
        windows = padded.unfold(2, split.patch_size, split.stride).unfold(3, split.patch_size, split.stride)
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [B, N, C * P * P]
