"""A whole accelerated Dynamic Vision Transformer (DVT)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.backend import Backend
from vitfast.inference.ir import BlockSpec, CascadeSpec, FallbackSpec, ReuseSpec, TransformerSpec
from vitfast.inference.modules.attention import RelationAttention, spread_key_bias, upsample_relations
from vitfast.inference.modules.block import InferenceBlock
from vitfast.inference.modules.embedding import InferenceEmbedding
from vitfast.inference.modules.readout import InferenceReadout
from vitfast.inference.modules.token_merging import MergedTokens, TokenMerging
from vitfast.models.dvt import ExitSequence, run_reuse_blocks


class FeatureReuse(nn.Module):
    """Reduces the previous exit's features to fewer channels and upsamples them to this exit's grid."""

    upsample: Tensor

    def __init__(self, spec: ReuseSpec, backend: Backend) -> None:
        super().__init__()
        self.mlp = backend.mlp(spec.norm, spec.mlp)
        self.register_buffer("upsample", backend.copy_in_dtype(spec.upsample))

    def forward(self, features: Tensor) -> Tensor:
        """Turns ``[B, 1 + g * g, C]`` into ``[B, 1 + G * G, out]``, with zeros for the class token."""
        condensed = self.mlp(features, None)
        return F.pad(self.upsample[1:, 1:] @ condensed[:, 1:], (0, 0, 1, 0))


class RelationReuse(nn.Module):
    """Mixes the logits of all layers of one exit to biases for the next exit, for all images at once."""

    operators = ("upsample_relations",)

    upsample: Tensor

    def __init__(self, spec: ReuseSpec, backend: Backend) -> None:
        super().__init__()
        self.mlp = backend.mlp(spec.norm, spec.mlp)
        self.register_buffer("upsample", backend.tensors.copy(spec.upsample))

    def forward(self, relations: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns for each layer ``[B, H, 1 + g * g, 1 + g * g]``, not upsampled yet."""
        channels_last = torch.cat(tuple(relations), dim=1).permute(0, 2, 3, 1).contiguous()
        return self.mlp(channels_last, None).permute(0, 3, 1, 2).chunk(len(relations), dim=1)


class RelationReusePerImage(RelationReuse):
    """As ``RelationReuse``, one image at a time: the hidden units of a batch would not fit into a CPU's cache."""

    def forward(self, relations: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():  # a program for any number of images has no loop over them
            return super().forward(relations)
        batch, heads, tokens, _ = relations[0].shape
        mixed = relations[0].new_empty(batch, len(relations) * heads, tokens, tokens)
        for index, image in enumerate(zip(*relations, strict=True)):
            channels_last = torch.cat(image).permute(1, 2, 0).contiguous()
            mixed[index] = self.mlp(channels_last, None).permute(2, 0, 1)
        return mixed.chunk(len(relations), dim=1)


class ReuseBlock(InferenceBlock):
    """A block that reads features and relations of the previous exit."""

    upsample: Tensor | None  # matrix of the exit's ``RelationReuse``

    def __init__(self, spec: BlockSpec, upsample: Tensor | None, backend: Backend) -> None:
        heads = (spec.attention.heads, spec.attention.head_dim, spec.attention.scale)
        attention = backend.layer_class(RelationAttention)(*heads)
        super().__init__(spec.name, *backend.block_parts(spec, attention), backend.dtype)
        self.feature_reuse = None if spec.feature_reuse is None else FeatureReuse(spec.feature_reuse, backend)
        self.register_buffer("upsample", upsample)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        features: Tensor | None = None,
        relations: Tensor | None = None,
        return_relations: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``vitfast.layers.ReuseBlock``; relations may also be on the previous exit's grid."""
        x = x.to(self.dtype).contiguous()
        attended, logits = self.attention(self.qkv(x), relations, self.upsample, return_relations)
        x = self.proj(attended, x)
        wide = x if self.feature_reuse is None else torch.cat([x, self.feature_reuse(features)], dim=2)
        return self.mlp(wide, x), logits


class MergingReuseBlock(ReuseBlock):
    """A ``ReuseBlock`` that merges tokens; what it reuses and returns is of all original tokens."""

    def __init__(self, spec: BlockSpec, upsample: Tensor | None, backend: Backend, count: int) -> None:
        super().__init__(spec, upsample, backend)
        self.merging = backend.layer_class(TokenMerging)(count)

    @property
    def path(self) -> str:
        return f"{super().path}, merges {self.merging.count} tokens"

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        merged: MergedTokens,
        features: Tensor | None = None,
        relations: Tensor | None = None,
        return_relations: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        x = x.to(self.dtype).contiguous()
        qkv = self.qkv(x)
        attention: Any = self.attention
        key_bias = spread_key_bias(merged.key_bias, attention.heads, qkv.dtype)
        bias = relations
        if key_bias is not None:
            bias = key_bias
            if relations is not None and self.upsample is not None:
                upsample = merged.mean(self.upsample.expand(len(x), -1, -1))[:, None].to(relations.dtype)
                bias = upsample @ relations @ upsample.transpose(2, 3) + key_bias
        attended, logits = attention(qkv, bias, self.upsample, return_relations)
        if logits is not None and key_bias is not None:
            logits = merged.spread_pairs(logits - key_bias)
        x = self.merging(self.proj(attended, x), attention.split_heads(qkv)[:, :, 1], merged)
        wide = x if self.feature_reuse is None else torch.cat([x, merged.mean(self.feature_reuse(features))], dim=2)
        return self.mlp(wide, x), logits


class InferenceExit(nn.Module):
    """One transformer of the cascade."""

    def __init__(self, spec: TransformerSpec, backend: Backend) -> None:
        super().__init__()
        self.embedding = InferenceEmbedding(spec.embedding, backend)
        self.relation_reuse = None
        if spec.relation_reuse is not None:
            cls = RelationReusePerImage if backend.per_image else RelationReuse
            self.relation_reuse = cls(spec.relation_reuse, backend)
        upsample = None if self.relation_reuse is None else self.relation_reuse.upsample
        self.blocks = nn.ModuleList()
        blocks: Any = spec.blocks  # an exit merges no patches
        for one in blocks:
            if isinstance(one, FallbackSpec):
                self.blocks.append(backend.fallback(one))
            elif spec.merge_tokens:
                self.blocks.append(MergingReuseBlock(one, upsample, backend, spec.merge_tokens))
            else:
                self.blocks.append(ReuseBlock(one, upsample, backend))
        self.merges_tokens = spec.merge_tokens > 0
        self.norm = backend.norm_or_identity(spec.norm)
        self.readout = InferenceReadout(spec.readouts[0], backend)

    def forward(
        self, images: Tensor, features: Tensor | None, relations: Sequence[Tensor], *, return_relations: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """As ``vitfast.models.dvt.DVTExit``."""
        x = self.embedding(images)
        biases = None if self.relation_reuse is None else self._biases(self.relation_reuse, relations)
        blocks: Any = self.blocks
        merged = MergedTokens(len(self.embedding.prefix))
        if self.merges_tokens:
            blocks = [partial(block, merged=merged) for block in blocks]
        x, returned = run_reuse_blocks(blocks, x, features, biases, return_relations)
        return self.readout(self.norm(x[:, :1])), merged.spread(x), returned

    def _biases(self, reuse: RelationReuse, relations: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the bias of each block; blocks that run the source's code require it on the finer grid."""
        for block, coarse in zip(self.blocks, reuse(relations), strict=True):
            yield coarse if isinstance(block, ReuseBlock) else upsample_relations(coarse, reuse.upsample)


class InferenceCascade(ExitSequence):
    """An accelerated DVT: runs all exits, or one after the other."""

    def __init__(self, spec: CascadeSpec, backend: Backend) -> None:
        super().__init__()
        self.exits = nn.ModuleList(InferenceExit(one, backend) for one in spec.exits)
        self.feature_reuse = spec.feature_reuse
        self.relation_reuse = spec.relation_reuse

    @property
    def embedding(self) -> nn.Module:
        """The first exit's embedding."""
        return self.exits[0].get_submodule("embedding")
