"""What the exits of an accelerated Dynamic Vision Transformer are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.description import Block, FeatureReuse, RelationReuse
from vitfast.inference.packed.packed_attention import PackedAttention
from vitfast.inference.packed.packed_block import PackedMlp, PackedNormLinear, path_of
from vitfast.inference.packed.packer import Packer
from vitfast.ops.library import has_kernel


class PackedFeatureReuse(nn.Module):
    """Condenses the features of the exit before and brings them to a finer grid.

    Args:
        described: the part.
        packer: packs.
    """

    upsample: Tensor

    def __init__(self, described: FeatureReuse, packer: Packer) -> None:
        super().__init__()
        self.norm = packer.norm(described.norm)
        self.fc1 = packer.linear(described.mlp.fc1)
        self.fc2 = packer.linear(described.mlp.fc2)
        self.activation = described.mlp.activation
        self.register_buffer("upsample", packer.in_stream(described.upsample))

    def forward(self, features: Tensor) -> Tensor:
        """Turns ``[B, 1 + g * g, C]`` into ``[B, 1 + G * G, out]``; the class token's are zero."""
        condensed = self.fc2(self.fc1(self.norm(features), self.activation))
        return F.pad(self.upsample[1:, 1:] @ condensed[:, 1:], (0, 0, 1, 0))


class PackedRelationReuse(nn.Module):
    """Mixes the logits of all layers of one exit to biases for those of the next.

    Args:
        described: the part.
        packer: packs.
    """

    operators = ("upsample_relations",)

    upsample: Tensor

    def __init__(self, described: RelationReuse, packer: Packer) -> None:
        super().__init__()
        self.layers = described.layers
        self.image_by_image = packer.image_by_image
        self.fc1 = packer.linear(described.fc1)
        self.fc2 = packer.linear(described.fc2)
        self.register_buffer("upsample", packer.keep(described.upsample))

    def forward(self, relations: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields a bias ``[B, H, 1 + G * G, 1 + G * G]`` for each layer, when it asks for it."""
        if not self.image_by_image:
            yield from self._at_once(relations)
            return
        batch, heads, tokens, _ = relations[0].shape
        mixed = relations[0].new_empty(batch, self.layers * heads, tokens, tokens)
        for index, image in enumerate(zip(*relations, strict=True)):
            channels_last = torch.cat(image).permute(1, 2, 0).contiguous()
            mixed[index] = self.fc2(self.fc1(channels_last, "gelu")).permute(2, 0, 1)
        for of_layer in mixed.chunk(self.layers, dim=1):
            yield ops.upsample_relations(of_layer, self.upsample)

    def _at_once(self, relations: Sequence[Tensor]) -> Iterator[Tensor]:
        """The same for all images together, by products in the relations' type: what a GPU is made for."""
        channels_last = torch.cat(tuple(relations), dim=1).permute(0, 2, 3, 1).contiguous()
        mixed = self.fc2(self.fc1(channels_last, "gelu")).permute(0, 3, 1, 2)  # [B, L * H, 1 + g * g, 1 + g * g]
        for of_layer in mixed.chunk(self.layers, dim=1):
            yield self._upsampled(of_layer)

    def _upsampled(self, mixed: Tensor) -> Tensor:
        if has_kernel("upsample_relations", mixed.device.type):
            return ops.upsample_relations(mixed, self.upsample)
        columns = self.upsample.t().to(mixed.dtype)
        # rows by way of the transpose, as in the operator
        return (mixed.transpose(2, 3) @ columns).transpose(2, 3) @ columns


class PackedReuseBlock(nn.Module):
    """A block that reads features and relations of the exit before.

    Args:
        described: the block.
        packer: packs.
    """

    operators = ("attention",)

    def __init__(self, described: Block, packer: Packer) -> None:
        super().__init__()
        self.name = described.name
        self.qkv = PackedNormLinear(packer.norm(described.norm1), packer.linear(described.attention.qkv))
        self.attention = PackedAttention(described.attention, packer)
        self.proj = packer.linear(described.attention.proj)
        reuse = described.feature_reuse
        self.feature_reuse = None if reuse is None else PackedFeatureReuse(reuse, packer)
        self.mlp = PackedMlp(described.norm2, described.mlp, packer)
        self.dtype = packer.stream_dtype

    @property
    def path(self) -> str:
        """What runs it."""
        return f"{path_of(self.qkv.linear, self.proj, self.mlp.fc1, self.mlp.fc2)}, attention apart"

    def forward(
        self,
        x: Tensor,
        *,
        features: Tensor | None = None,
        relations: Tensor | None = None,
        return_relations: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``vitfast.layers.ReuseBlock``."""
        x = x.to(self.dtype).contiguous()
        attended, logits = self.attention.related(self.qkv(x), relations, return_relations)
        x = self.proj(attended, residual=x)
        wide = x if self.feature_reuse is None else torch.cat([x, self.feature_reuse(features)], dim=2)
        return self.mlp(wide, x), logits
