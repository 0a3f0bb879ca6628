"""The tokens-to-token module of an accelerated model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitfast import ops
from vitfast.inference.ir import SplitSpec, TokenMixerSpec, TokensToTokenSpec
from vitfast.inference.packed.packed_block import PackedMlp, path_of
from vitfast.inference.packed.packed_split import PackedSplit
from vitfast.inference.packed.packer import Packer
from vitfast.layers.performer_attention import performer_attention

_EPSILON = 1e-8  # of a performer's denominator
# Those of the first split that are mixed at a time: what lies between the steps stays in the cache, and a few small
# images share the calls.
_TOKENS_AT_ONCE = 4096


class PackedTokenMixer(nn.Module):
    """A soft split and the attention layer after it.

    Args:
        split: the patches.
        described: the layer.
        packer: packs.
        token_dim: channels of the tokens that are split; None: images are.
    """

    projection: Tensor | None

    def __init__(self, split: SplitSpec, described: TokenMixerSpec, packer: Packer, token_dim: int | None) -> None:
        super().__init__()
        self.split = PackedSplit(split, described.norm1, described.linear, packer, token_dim=token_dim)
        self.scale = described.scale
        self.register_buffer("projection", packer.keep(described.projection))
        self.has_performer = packer.has("packed_performer")
        self.proj = packer.linear(described.proj)
        self.mlp = PackedMlp(described.norm2, described.mlp, packer)

    @property
    def operators(self) -> tuple[str, ...]:
        """Those of vitfast that it calls itself."""
        return () if self.projection is not None else ("attention",)

    def forward(self, x: Tensor, size: int) -> Tensor:
        """Splits ``x``, as ``PackedSplit`` reads it, and mixes its patches; returns tokens ``[B, N, D]``."""
        mixed = self.split(x, size)
        v = mixed.chunk(3, dim=-1)[2].contiguous()
        if self.projection is not None and self.has_performer:
            attended = torch.ops.vitfast.packed_performer.default(mixed, self.projection, _EPSILON)
        elif self.projection is not None:
            k, q, _ = mixed.chunk(3, dim=-1)
            attended = performer_attention(q, k, v, self.projection, epsilon=_EPSILON)
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

    def __init__(self, described: TokensToTokenSpec, packer: Packer) -> None:
        super().__init__()
        self.image_size = described.image_size
        self.in_chans = described.in_chans
        self.image_by_image = packer.image_by_image
        first, second, third = described.splits
        one, two = described.mixers
        token_dims = (one.mlp.fc2.out_features, two.mlp.fc2.out_features)
        self.mixers: Any = nn.ModuleList(
            [PackedTokenMixer(first, one, packer, None), PackedTokenMixer(second, two, packer, token_dims[0])]
        )
        self.project = PackedSplit(third, None, described.project, packer, token_dim=token_dims[1])

    @property
    def num_patches(self) -> int:
        """Tokens of an image of the usual size."""
        grid: int = self.project.grid_size(self._grid_size(self.image_size[0]))
        return grid**2

    @property
    def path(self) -> str:
        """What runs it."""
        return f"{path_of(self.project.linear)}, tokens to tokens"

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, size, size]`` into tokens ``[B, N, C]``."""
        at_once = len(images)
        if self.image_by_image:  # as in vitfast.layers.TokensToToken
            at_once = max(1, _TOKENS_AT_ONCE // self.mixers[0].split.grid_size(images.shape[-1]) ** 2)
        if len(images) <= at_once:
            x = self._mixed(images)
        else:
            x = torch.cat([self._mixed(some) for some in images.split(at_once)])
        return self.project(x, self._grid_size(images.shape[-1]))

    def _grid_size(self, size: int) -> int:
        """Tokens along a side after both attentions."""
        for mixer in self.mixers:
            size = mixer.split.grid_size(size)
        return size

    def _mixed(self, x: Tensor) -> Tensor:
        """Splits and mixes, but for the last split."""
        size = x.shape[-1]
        for mixer in self.mixers:
            x = mixer(x, size)
            size = mixer.split.grid_size(size)
        return x
