"""The twins of the layers that T2T-ViT and the Dynamic Vision Transformer add.

Rounded are their linear layers, their 1 x 1 convolutions (linear layers over channels), their LayerNorms and what they
add or join. The performer's random features, the logits that one exit hands to the next, and the resampling of these
logits belong to attention: they stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast.layers import FeatureReuse, PaddedPatchEmbed, RelationReuse, ReuseBlock
from vitfast.layers.performer_attention import performer_attention
from vitfast.layers.relation_attention import RelationAttention
from vitfast.layers.token_performer import TokenPerformer
from vitfast.layers.token_transformer import TokenAttention, TokenTransformer
from vitfast.quantization.quantized_module import QuantizedModule, QuantizedProduct, autocast_off
from vitfast.quantization.vitfast_layers import QuantizedPatchEmbed


class QuantizedTokenPerformer(QuantizedModule, TokenPerformer):
    """Twin of ``TokenPerformer``: both additions are stored results."""

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens ``[B, N, C]`` to ``[B, N, D]``."""
        if self.is_off:
            return super().forward(x)
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        attended = self.drop(self.proj(performer_attention(q, k, v, self.w)))
        x = self.stored(attended + v)
        return self.stored(x + self.mlp(self.norm2(x)))


class QuantizedTokenAttention(QuantizedModule, TokenAttention):
    """Twin of ``TokenAttention``: nothing is rounded between ``qkv`` and ``proj``, not even by autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attends over the tokens ``[B, N, C]``; returns the two terms ``[B, N, D]``, not yet added."""
        if self.is_off:
            return super().forward(x)
        with autocast_off(x):
            return super().forward(x)


class QuantizedTokenTransformer(QuantizedModule, TokenTransformer):
    """Twin of ``TokenTransformer``: both additions are stored results."""

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens ``[B, N, C]`` to ``[B, N, D]``."""
        if self.is_off:
            return super().forward(x)
        attended, v = self.attn(self.norm1(x))
        x = self.stored(attended + v)
        return self.stored(x + self.mlp(self.norm2(x)))


class QuantizedRelationAttention(QuantizedModule, RelationAttention):
    """Twin of ``RelationAttention``: the logits stay float32, those that come and those that go."""

    def forward(  # type: ignore[override]
        self, x: Tensor, relations: Tensor | None = None, *, return_relations: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends over the tokens ``[B, N, C]``; returns them and the logits ``[B, H, N, N]`` or None."""
        if self.is_off:
            return super().forward(x, relations, return_relations=return_relations)
        with autocast_off(x):
            if relations is not None:
                relations = relations.to(torch.promote_types(relations.dtype, torch.float32))
            return super().forward(x, relations, return_relations=return_relations)


class QuantizedRelationReuse(QuantizedModule, RelationReuse):
    """Twin of ``RelationReuse``: its 1 x 1 convolutions round; the resampling stays float32 under any autocast."""

    def forward(self, relations: Sequence[Tensor]) -> Iterable[Tensor]:
        """Turns the logits of an exit's layers, each ``[B, H, n, n]``, into biases ``[B, H, N, N]`` for the next."""
        if self.is_off:
            yield from super().forward(relations)
            return
        for mixed in self.mlp(torch.cat(tuple(relations), dim=1)).chunk(self.num_layers, dim=1):
            with autocast_off(mixed):
                bias = self.upsample.relations(mixed)
            yield bias


class QuantizedFeatureReuse(QuantizedModule, FeatureReuse):
    """Twin of ``FeatureReuse``: the resampled features are a stored result."""

    def forward(self, features: Tensor) -> Tensor:
        """Turns features ``[B, 1 + g * g, C]`` into ``[B, 1 + G * G, out_dim]``."""
        if self.is_off:
            return super().forward(features)
        with autocast_off(features):
            return self.stored(super().forward(features))


class QuantizedReuseBlock(QuantizedModule, ReuseBlock):
    """Twin of ``ReuseBlock``: both additions are stored results; the joined channels are stored already."""

    def forward(
        self,
        x: Tensor,
        *,
        features: Tensor | None = None,
        relations: Tensor | None = None,
        return_relations: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Transforms the residual stream ``[B, N, C]``; see ``ReuseBlock``."""
        if self.is_off:
            return super().forward(x, features=features, relations=relations, return_relations=return_relations)
        attended, logits = self.attn(self.norm1(x), relations, return_relations=return_relations)
        x = self.stored(x + self.drop_path(attended))
        wide = x if self.feature_reuse is None else torch.cat([x, self.feature_reuse(features)], dim=2)
        return self.stored(x + self.drop_path(self.mlp(self.norm2(wide)))), logits


class QuantizedPaddedPatchEmbed(QuantizedPatchEmbed, PaddedPatchEmbed):
    """Twin of ``PaddedPatchEmbed``."""

    def forward(self, images: Tensor) -> Tensor:
        """Embeds the patches of ``[B, in_chans, img_size, img_size]``: ``[B, N, C]``."""
        if self.is_off or not isinstance(self.proj, QuantizedProduct):
            return PaddedPatchEmbed.forward(self, images)
        return super().forward(F.pad(images, self.padding))
