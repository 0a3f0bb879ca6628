"""What the exits of an accelerated Dynamic Vision Transformer are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import BlockSpec, FeatureReuseSpec, MlpSpec, RelationReuseSpec
from vitfast.inference.packed.packed_attention import PackedAttention
from vitfast.inference.packed.packed_block import PackedMlp, PackedNormLinear, path_of
from vitfast.inference.packed.packer import Packer


class PackedFeatureReuse(nn.Module):
    """Condenses the features of the exit before and brings them to a finer grid.

    Args:
        described: the part.
        packer: packs.
    """

    upsample: Tensor

    def __init__(self, described: FeatureReuseSpec, packer: Packer) -> None:
        super().__init__()
        self.mlp = PackedMlp(described.norm, described.mlp, packer)
        self.register_buffer("upsample", packer.in_stream(described.upsample))

    def forward(self, features: Tensor) -> Tensor:
        """Turns ``[B, 1 + g * g, C]`` into ``[B, 1 + G * G, out]``; the class token's are zero."""
        condensed = self.mlp(features, None)
        return F.pad(self.upsample[1:, 1:] @ condensed[:, 1:], (0, 0, 1, 0))


class PackedRelationReuse(nn.Module):
    """Mixes the logits of all layers of one exit to biases for those of the next.

    Args:
        described: the part.
        packer: packs.
    """

    operators = ("upsample_relations",)

    upsample: Tensor

    def __init__(self, described: RelationReuseSpec, packer: Packer) -> None:
        super().__init__()
        self.layers = described.layers
        self.image_by_image = packer.image_by_image
        self.mlp = PackedMlp(None, MlpSpec(described.fc1, "gelu", described.fc2), packer)
        self.register_buffer("upsample", packer.keep(described.upsample))

    def forward(self, relations: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns for each layer ``[B, H, 1 + g * g, 1 + g * g]``, which ``upsample`` brings to its grid."""
        if not self.image_by_image:
            channels_last = torch.cat(tuple(relations), dim=1).permute(0, 2, 3, 1).contiguous()
            mixed = self.mlp(channels_last, None).permute(0, 3, 1, 2)
            return mixed.chunk(self.layers, dim=1)
        batch, heads, tokens, _ = relations[0].shape
        mixed = relations[0].new_empty(batch, self.layers * heads, tokens, tokens)
        for index, image in enumerate(zip(*relations, strict=True)):
            channels_last = torch.cat(image).permute(1, 2, 0).contiguous()
            mixed[index] = self.mlp(channels_last, None).permute(2, 0, 1)
        return mixed.chunk(self.layers, dim=1)


class PackedReuseBlock(nn.Module):
    """A block that reads features and relations of the exit before.

    Args:
        described: the block.
        packer: packs.
        upsample: the matrix of ``PackedRelationReuse``, or None.
    """

    operators = ("attention",)

    upsample: Tensor | None

    def __init__(self, described: BlockSpec, packer: Packer, upsample: Tensor | None) -> None:
        super().__init__()
        self.name = described.name
        self.qkv = PackedNormLinear(packer.norm(described.norm1), packer.linear(described.attention.qkv))
        self.attention = PackedAttention(described.attention, packer)
        self.proj = packer.linear(described.attention.proj)
        reuse = described.feature_reuse
        self.feature_reuse = None if reuse is None else PackedFeatureReuse(reuse, packer)
        self.mlp = PackedMlp(described.norm2, described.mlp, packer)
        self.dtype = packer.stream_dtype
        self.register_buffer("upsample", upsample, persistent=False)

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
        """See ``vitfast.layers.ReuseBlock``; relations may also be those on the grid of the exit before."""
        x = x.to(self.dtype).contiguous()
        attended, logits = self.attention.related(self.qkv(x), relations, self.upsample, return_relations)
        x = self.proj(attended, residual=x)
        wide = x if self.feature_reuse is None else torch.cat([x, self.feature_reuse(features)], dim=2)
        return self.mlp(wide, x), logits
