"""The tokens-to-token module of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.backend import Backend
from vitfast.inference.ir import SplitSpec, TokenMixerSpec, TokensToTokenSpec
from vitfast.inference.modules.attention import PerformerAttention, SingleHeadAttention
from vitfast.inference.modules.linear import describe_gemms
from vitfast.inference.modules.patches import PatchEmbedding

# tokens of the first split that are mixed at a time on a CPU: intermediate results stay in the cache, and a few small
# images share the calls
_TOKENS_AT_ONCE = 4096


class TokenMixer(nn.Module):
    """A split and the attention layer after it; ``token_dim``: channels of the tokens, None where images are split."""

    def __init__(self, split: SplitSpec, spec: TokenMixerSpec, token_dim: int | None, backend: Backend) -> None:
        super().__init__()
        self.split = backend.split_linear(split, spec.norm1, spec.linear, token_dim)
        self.attention: nn.Module = SingleHeadAttention(spec.scale)
        if spec.projection is not None:
            self.attention = backend.layer_class(PerformerAttention)(backend.tensors.copy(spec.projection))
        self.proj = backend.linear(spec.proj)
        self.mlp = backend.mlp(spec.norm2, spec.mlp)

    def forward(self, x: Tensor, size: int) -> Tensor:
        """Splits ``x``, as ``SplitLinear`` reads it, and mixes its patches; returns tokens ``[B, N, D]``."""
        mixed = self.split(x, (size, size))
        v = mixed.chunk(3, dim=-1)[2].contiguous()
        x = self.proj(self.attention(mixed, v), v)
        return self.mlp(x, x)


class TokensToToken(PatchEmbedding):
    """Overlapping patches in three steps.

    Attributes:
        tokens_at_once: how many tokens of the first split are mixed at a time; None: those of all images.
    """

    def __init__(self, spec: TokensToTokenSpec, backend: Backend) -> None:
        super().__init__(spec.image_size, spec.in_chans)
        (split1, split2, split3), (mixer1, mixer2) = spec.splits, spec.mixers
        self.first = TokenMixer(split1, mixer1, None, backend)
        self.second = TokenMixer(split2, mixer2, mixer1.mlp.fc2.out_features, backend)
        self.project = backend.split_linear(split3, None, spec.project, mixer2.mlp.fc2.out_features)
        self.tokens_at_once = _TOKENS_AT_ONCE if backend.per_image else None

    @property
    def path(self) -> str:
        return f"{describe_gemms(self.project.linear)}, tokens-to-token"

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-1]
        if self.tokens_at_once is None or torch.compiler.is_compiling():  # as in vitfast.layers.TokensToToken
            x = self._mixed(images, size)
        else:
            at_once = max(1, self.tokens_at_once // self.first.split.grid_size(size) ** 2)
            x = torch.cat([self._mixed(some, size) for some in images.split(at_once)])
        size = self.second.split.grid_size(self.first.split.grid_size(size))
        return self.project(x, (size, size))

    def _mixed(self, images: Tensor, size: int) -> Tensor:
        return self.second(self.first(images, size), self.first.split.grid_size(size))
