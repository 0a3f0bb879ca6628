"""One of the transformers that a Dynamic Vision Transformer is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitfast.layers import (
    AddPositions,
    ConvStem,
    FeatureReuse,
    GridUpsample,
    JoinTokens,
    LayerNorm,
    PaddedPatchEmbed,
    RelationReuse,
    ReuseBlock,
    TokensToToken,
    sinusoidal_positions,
)
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.vit import initialize_linear


class DVTExit(nn.Module):
    """A ViT or T2T-ViT that continues where the previous exit stopped.

    Args:
        fields: those of the whole model.
        index: which exit this is, from 0; the first has nothing to reuse.
    """

    def __init__(self, fields: DVTFields, index: int) -> None:
        super().__init__()
        dim, eps = fields.embed_dim, fields.layer_norm_eps
        grid = fields.grid_sizes[index]
        upsample = GridUpsample(fields.grid_sizes[index - 1], grid) if index else None

        self.patch_embed = _patch_embed(fields, index)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.pos_embed = _positions(fields, 1 + grid**2)
        self.join_tokens = JoinTokens()
        self.add_positions = AddPositions()
        self.pos_drop = nn.Dropout(fields.drop_rate)
        self.relation_reuse = (
            RelationReuse(fields.depth, fields.num_heads, upsample) if upsample and fields.relation_reuse else None
        )
        self.blocks = nn.ModuleList(
            ReuseBlock(
                dim,
                fields.num_heads,
                fields.mlp_dim,
                feature_reuse=_feature_reuse(fields, upsample) if upsample and fields.feature_reuse else None,
                qkv_bias=fields.qkv_bias,
                layer_norm_eps=eps,
                drop_rate=fields.drop_rate,
                attention_drop_rate=fields.attention_drop_rate,
                drop_path=fields.drop_path_of(block),
            )
            for block in range(fields.depth)
        )
        self.norm = LayerNorm(dim, eps)
        self.head = nn.Linear(dim, fields.num_classes) if fields.num_classes else nn.Identity()
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    initialize_linear(module)

    def forward(
        self, images: Tensor, features: Tensor | None, relations: Sequence[Tensor], *, return_relations: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Classifies images.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.
            features: what the previous exit's last block gave, ``[B, n, C]``; read with ``feature_reuse``.
            relations: for each layer of the previous exit its attention logits, ``[B, H, n, n]``; read with
                ``relation_reuse``.
            return_relations: also return this exit's.

        Returns:
            The logits ``[B, num_classes]``; what the last block gave, ``[B, N, C]``; for each layer its attention
            logits ``[B, H, N, N]``, or nothing.
        """
        x = self.embed(images)
        biases = None if self.relation_reuse is None else self.relation_reuse(relations)
        x, returned = run_reuse_blocks(self.blocks, x, features, biases, return_relations)
        return self.head(self.norm(x[:, 0])), x, returned

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block."""
        tokens = self.join_tokens(self.cls_token, self.patch_embed(images))
        return self.pos_drop(self.add_positions(tokens, self.pos_embed))


def run_reuse_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    features: Tensor | None,
    biases: Iterable[Tensor] | None,
    return_relations: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs the blocks of an exit.

    Args:
        blocks: of ``ReuseBlock``'s form.
        x: tokens ``[B, N, C]``.
        features: what the previous exit's last block gave, or None.
        biases: one for each block, from ``RelationReuse``; they are asked for one at a time. None: no block has one.
        return_relations: also return the blocks' attention logits.

    Returns:
        What the last block gave ``[B, N, C]``; for each block its attention logits ``[B, H, N, N]``, or nothing.
    """
    returned = []
    for block, bias in zip(blocks, [None] * len(blocks) if biases is None else biases, strict=True):
        x, logits = block(x, features=features, relations=bias, return_relations=return_relations)
        if logits is not None:
            returned.append(logits)
    return x, tuple(returned)


def _patch_embed(fields: DVTFields, index: int) -> nn.Module:
    size, stride, padding = (
        values[index] for values in (fields.patch_sizes, fields.patch_strides, fields.patch_paddings)
    )
    if fields.backbone == "vit":
        return PaddedPatchEmbed(fields.img_size, size, padding, fields.in_chans, fields.embed_dim)
    if fields.backbone == "conv_vit":
        return ConvStem(stride, fields.in_chans, fields.embed_dim)
    return TokensToToken(
        size,
        stride,
        padding,
        fields.in_chans,
        fields.embed_dim,
        token_dim=fields.token_dim,
        tokens_type="performer" if fields.backbone == "t2t_vit" else "transformer",
        layer_norm_eps=fields.layer_norm_eps,
        drop_rate=fields.token_drop_rate,
    )


def _positions(fields: DVTFields, num_positions: int) -> nn.Parameter:
    if fields.backbone in ("vit", "conv_vit"):
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_positions, fields.embed_dim), std=0.02))
    return nn.Parameter(sinusoidal_positions(num_positions, fields.embed_dim), requires_grad=False)


def _feature_reuse(fields: DVTFields, upsample: GridUpsample) -> FeatureReuse:
    return FeatureReuse(
        fields.embed_dim,
        fields.reuse_hidden_dim,
        fields.reuse_dim,
        upsample,
        layer_norm_eps=fields.layer_norm_eps,
        drop_rate=fields.drop_rate,
    )
