"""The tokens-to-token module of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.ir import SplitSpec, TokensToTokenSpec
from vitfast.inference.modules.block import InferenceMlp
from vitfast.inference.modules.linear import InferenceLinear, describe_gemms
from vitfast.inference.modules.norm import InferenceNorm
from vitfast.layers.token_performer import performer_attention

PERFORMER_EPSILON = 1e-8  # added to the denominator
# tokens of the first split that are mixed at a time on a CPU: intermediate results stay in the cache, and a few small
# images share the calls
TOKENS_AT_ONCE = 4096


class SplitLinear(nn.Module):
    """``linear(norm(patches))`` of overlapping patches.

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

    def forward(self, x: Tensor, size: int) -> Tensor:
        """Reads images ``[B, I, size, size]`` or tokens ``[B, size * size, D]``; returns ``[B, N, C]``."""
        return self.project(x if self.token_dim is None else x.unflatten(1, (1, size, size)).flatten(3))

    def project(self, images: Tensor) -> Tensor:
        """Splits and projects images or a grid of tokens."""
        # one copy; twice as fast as F.unfold and a transpose
        (height, width), (down, across) = self.patch, self.stride
        above, left = self.padding
        windows = F.pad(images, (left, left, above, above)).unfold(2, height, down).unfold(3, width, across)
        patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        out: Tensor = self.linear(patches if self.norm is None else self.norm(patches))
        return out


class SingleHeadAttention(nn.Module):
    """Softmax attention with one head: qkv ``[B, N, 3 * D]`` -> ``[B, N, D]``."""

    operators = ("attention",)

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, qkv: Tensor, v: Tensor) -> Tensor:
        return ops.attention_packed(qkv.unflatten(-1, (3, 1, -1)), scale=self.scale).squeeze(2)


class PerformerAttention(nn.Module):
    """A performer's attention: kqv ``[B, N, 3 * D]`` -> ``[B, N, D]``; ``projection`` ``[M, D]``: random features."""

    projection: Tensor

    def __init__(self, projection: Tensor) -> None:
        super().__init__()
        self.register_buffer("projection", projection)

    def forward(self, kqv: Tensor, v: Tensor) -> Tensor:
        k, q, _ = kqv.chunk(3, dim=-1)
        return performer_attention(q, k, v, self.projection, epsilon=PERFORMER_EPSILON)


class TokenMixer(nn.Module):
    """A split and the attention layer after it.

    Args:
        split: the patches, the LayerNorm and the projection to q, k, v (k, q, v for a performer).
        attention: between the projections; takes the projected tokens and a contiguous copy of v.
        proj: output projection.
        mlp: the MLP with its LayerNorm.
    """

    def __init__(self, split: SplitLinear, attention: nn.Module, proj: InferenceLinear, mlp: InferenceMlp) -> None:
        super().__init__()
        self.split = split
        self.attention = attention
        self.proj = proj
        self.mlp = mlp

    def forward(self, x: Tensor, size: int) -> Tensor:
        """Splits ``x``, as ``SplitLinear`` reads it, and mixes its patches; returns tokens ``[B, N, D]``."""
        mixed = self.split(x, size)
        v = mixed.chunk(3, dim=-1)[2].contiguous()
        x = self.proj(self.attention(mixed, v), residual=v)
        out: Tensor = self.mlp(x, x)
        return out


class TokensToToken(nn.Module):
    """Overlapping patches in three steps.

    Args:
        spec: sizes of the images.
        first: splits and mixes images.
        second: splits and mixes tokens.
        project: splits and projects tokens.
        tokens_at_once: how many tokens of the first split are mixed at a time; None: those of all images.
    """

    reads_pixels = False

    def __init__(
        self,
        spec: TokensToTokenSpec,
        first: TokenMixer,
        second: TokenMixer,
        project: SplitLinear,
        tokens_at_once: int | None,
    ) -> None:
        super().__init__()
        self.image_size = spec.image_size
        self.in_chans = spec.in_chans
        self.first = first
        self.second = second
        self.project = project
        self.tokens_at_once = tokens_at_once

    @property
    def num_patches(self) -> int:
        """Tokens of an image of ``image_size``."""
        return self.project.grid_size(self._mixed_size(self.image_size[0])) ** 2

    @property
    def path(self) -> str:
        """What runs the module, for the report."""
        return f"{describe_gemms(self.project.linear)}, tokens-to-token"

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, size, size]`` into tokens ``[B, N, C]``."""
        size = images.shape[-1]
        at_once = len(images)
        if self.tokens_at_once is not None:  # as in vitfast.layers.TokensToToken
            at_once = max(1, self.tokens_at_once // self.first.split.grid_size(size) ** 2)
        if len(images) <= at_once:
            x = self._mixed(images, size)
        else:
            x = torch.cat([self._mixed(some, size) for some in images.split(at_once)])
        out: Tensor = self.project(x, self._mixed_size(size))
        return out

    def _mixed_size(self, size: int) -> int:
        """Tokens along a side after both mixers."""
        return self.second.split.grid_size(self.first.split.grid_size(size))

    def _mixed(self, images: Tensor, size: int) -> Tensor:
        out: Tensor = self.second(self.first(images, size), self.first.split.grid_size(size))
        return out
