"""A whole accelerated Vision Transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfast.inference.backend import Backend
from vitfast.inference.ir import BlockSpec, FallbackSpec, TransformerSpec
from vitfast.inference.modules.attention import FirstTokensAttention
from vitfast.inference.modules.embedding import InferenceEmbedding
from vitfast.inference.modules.linear import describe_gemms
from vitfast.inference.modules.readout import InferenceReadout


class LastBlock(nn.Module):
    """The last block of a model whose head reads the first ``tokens`` tokens only.

    Keys and values are computed for all tokens; queries, output projection and MLP only for those that are read. With
    ``mlp_ratio`` 4 this saves five sixths of the block's GEMMs.
    """

    def __init__(self, spec: BlockSpec, tokens: int, backend: Backend) -> None:
        super().__init__()
        attention = spec.attention
        inner = attention.heads * attention.head_dim
        norm1 = backend.norm(spec.norm1)
        self.name = spec.name
        self.tokens = tokens
        self.q = backend.norm_linear(norm1, backend.linear(attention.qkv, rows=slice(0, inner)))
        self.kv = backend.norm_linear(norm1, backend.linear(attention.qkv, rows=slice(inner, 3 * inner)))
        q_norm, k_norm = backend.norm_or_identity(attention.q_norm), backend.norm_or_identity(attention.k_norm)
        heads = (attention.heads, attention.head_dim, attention.scale)
        self.attention = FirstTokensAttention(*heads, q_norm=q_norm, k_norm=k_norm)
        self.proj = backend.linear(attention.proj, scale=spec.scale1)
        self.mlp = backend.mlp(spec.norm2, spec.mlp, spec.scale2)
        self.dtype = backend.dtype

    @property
    def path(self) -> str:
        """What runs the block, for the report."""
        gemms = describe_gemms(self.q.linear, self.kv.linear, self.proj, self.mlp.fc1, self.mlp.fc2)
        return f"{gemms}, first {self.tokens} token{'s' if self.tokens > 1 else ''} only"

    def forward(self, x: Tensor) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``; returns the first tokens ``[B, tokens, C]``."""
        return self.first_tokens(x, self.tokens)

    def first_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``; returns the first ``tokens`` of the result."""
        x = x.to(self.dtype).contiguous()  # a fallback block may return any dtype and strides
        first = x[:, :tokens]
        attended = self.attention(self.q(first), self.kv(x))
        first = self.proj(attended, first.contiguous())
        return self.mlp(first, first)


class InferenceTransformer(nn.Module):
    """An accelerated Vision Transformer."""

    late_prefix: Tensor | None  # [1, T, C]

    def __init__(self, spec: TransformerSpec, backend: Backend) -> None:
        super().__init__()
        self.embedding = InferenceEmbedding(spec.embedding, backend)
        readouts = [InferenceReadout(one, backend) for one in spec.readouts]
        num_patches = self.embedding.num_patches
        self.blocks = nn.ModuleList(backend.block_or_fallback(one, num_patches) for one in spec.blocks[:-1])
        for last in spec.blocks[-1:]:
            tokens = _tokens_read(last, readouts)
            if tokens is None or isinstance(last, FallbackSpec):
                self.blocks.append(backend.block_or_fallback(last, num_patches))
            else:
                self.blocks.append(LastBlock(last, tokens, backend))
        self.norm = backend.norm_or_identity(spec.norm)
        self.readouts = nn.ModuleList(readouts)
        self.combine = spec.combine
        self.returns_tuple = spec.combine == "each"
        self.late_index = spec.late_index
        late_prefix = None
        if spec.late_prefix:
            late_prefix = torch.cat([token.detach() for token in spec.late_prefix], dim=1)
            late_prefix = late_prefix.to(backend.device, backend.dtype)
        self.register_buffer("late_prefix", late_prefix)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs the model on ``images`` ``[B, in_chans, H, W]``."""
        tokens = self.norm(self._through_blocks(self.embedding(images), all_tokens=False))
        results = tuple(readout(tokens) for readout in self.readouts)
        if self.combine == "each":
            return results
        if self.combine == "mean":
            return torch.stack(results).mean(0) if len(results) != 2 else (results[0] + results[1]) / 2
        return results[0]

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes all tokens after the final norm, ``[B, N, C]``."""
        return self.norm(self._through_blocks(self.embedding(images), all_tokens=True))

    def _through_blocks(self, tokens: Tensor, *, all_tokens: bool) -> Tensor:
        for index, block in enumerate(self.blocks):
            if self.late_prefix is not None and index == self.late_index:
                tokens = torch.cat([self.late_prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            if all_tokens and isinstance(block, LastBlock):
                tokens = block.first_tokens(tokens, tokens.shape[1])
            else:
                tokens = block(tokens)
        return tokens


def _tokens_read(last: BlockSpec | FallbackSpec, readouts: Sequence[InferenceReadout]) -> int | None:
    """How many of the last block's tokens suffice for all readouts; None: all tokens."""
    if isinstance(last, FallbackSpec) or last.attention.gated is not None:
        return None
    read = [readout.tokens_read for readout in readouts]
    return None if None in read else max(count for count in read if count is not None)
