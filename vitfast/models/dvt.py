"""The Dynamic Vision Transformer: a cascade of transformers with early exits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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
from vitfast.layers.patch_embed import check_images
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.image_model import ImageModel
from vitfast.models.transformer import initialize_linear


@dataclass(frozen=True)
class ExitState:
    """The inputs of the next exit, for a batch of images from which ``select`` may remove some.

    Attributes:
        images: ``[B, in_chans, img_size, img_size]``.
        next_exit: index of the next exit, from 0.
        features: output of the previous exit's last block, ``[B, N, C]``; None if it is not reused.
        relations: for each layer of the previous exit its attention logits, ``[B, H, N, N]``; empty if they are not
            reused.
    """

    images: Tensor
    next_exit: int = 0
    features: Tensor | None = None
    relations: tuple[Tensor, ...] = ()

    def select(self, indices: Tensor) -> ExitState:
        """Keeps some images, so that the next exit does not compute the others.

        Args:
            indices: the images to keep, as indices ``[K]`` or as a mask ``[B]``.
        """
        return ExitState(
            self.images[indices],
            self.next_exit,
            None if self.features is None else self.features[indices],
            tuple(relation[indices] for relation in self.relations),
        )


class ExitSequence(nn.Module):
    """Base class of ``DVT`` and of its accelerated form: runs all exits, or one after the other."""

    exits: nn.ModuleList
    feature_reuse: bool
    relation_reuse: bool

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classifies images at every exit.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.

        Returns:
            For each exit its logits ``[B, num_classes]``, or the class token's channels ``[B, C]`` for a model without
            heads.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images have another shape.
        """
        return tuple(self.exit_by_exit(images))

    def exit_by_exit(self, images: Tensor) -> Iterator[Tensor]:
        """Yields the logits of ``forward``, one exit at a time; each exit is computed when it is requested."""
        state = self.start(images)
        for _ in self.exits:
            logits, state = self.advance(state)
            yield logits

    def start(self, images: Tensor) -> ExitState:
        """Returns the state before the first exit; ``images`` and errors are those of ``forward``."""
        return ExitState(images)

    def advance(self, state: ExitState) -> tuple[Tensor, ExitState]:
        """Runs the next exit.

        Args:
            state: from ``start``, ``advance`` or ``select``.

        Returns:
            The exit's logits ``[B, num_classes]`` and the state before the next one.

        Raises:
            ValueError: there is no exit left.
        """
        index, last = state.next_exit, len(self.exits) - 1
        if index > last:
            raise ValueError(f"the model has {len(self.exits)} exits, and this state is after the last one")
        logits, features, relations = self.exits[index](
            state.images, state.features, state.relations, return_relations=self.relation_reuse and index < last
        )
        reused = features if self.feature_reuse and index < last else None
        return logits, ExitState(state.images, index + 1, reused, relations)


class DVT(ExitSequence, ImageModel):
    """A cascade of transformers on an increasing number of tokens, each with a classifier (Wang et al., 2021).

    Every exit after the first reuses the features and the attention logits of the previous one. ``forward`` runs all
    exits. To exit early, run one at a time and continue with the undecided images::

        state = model.start(images)
        while state.next_exit < model.num_exits:
            logits, state = model.advance(state)
            ...
            state = state.select(undecided)
    """

    fields: DVTFields

    def __init__(self, model_name: str, fields: DVTFields) -> None:
        super().__init__(model_name, fields)
        self.num_exits = fields.num_exits
        self.feature_reuse, self.relation_reuse = fields.feature_reuse, fields.relation_reuse
        self.exits = nn.ModuleList(DVTExit(fields, index) for index in range(fields.num_exits))
        # the last exit is the most accurate one, and its head the main head
        self.head_prefixes = tuple(  # type: ignore[misc]
            f"exits.{index}.head." for index in reversed(range(fields.num_exits))
        )

    def no_weight_decay(self) -> set[str]:
        # as in DeiT and T2T-ViT; the original training decays them: its code does not look into the wrapped exits
        return {f"exits.{index}.{name}" for index in range(self.num_exits) for name in ("cls_token", "pos_embed")}

    def position_keys(self) -> dict[str, int]:
        return {f"exits.{index}.pos_embed": 1 for index in range(self.num_exits)}

    def start(self, images: Tensor) -> ExitState:
        check_images(images, self.in_chans, self.img_size)
        return super().start(images)


class DVTExit(nn.Module):
    """One exit: a ViT or T2T-ViT that reuses features and attention logits of the previous exit.

    Args:
        fields: those of the whole model.
        index: the exit's index; exit 0 reuses nothing.
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
        self.blocks = nn.ModuleList()
        for block in range(fields.depth):
            reuse = None
            if upsample and fields.feature_reuse:
                dims = (dim, fields.reuse_hidden_dim, fields.reuse_dim)
                reuse = FeatureReuse(*dims, upsample, layer_norm_eps=eps, drop_rate=fields.drop_rate)
            options = fields.block_options(block)
            self.blocks.append(ReuseBlock(dim, fields.num_heads, fields.mlp_dim, feature_reuse=reuse, **options))
        self.norm = LayerNorm(dim, eps)
        self.head = nn.Linear(dim, fields.num_classes) if fields.num_classes else nn.Identity()
        initialize_linear(*self.modules())

    def forward(
        self, images: Tensor, features: Tensor | None, relations: Sequence[Tensor], *, return_relations: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Classifies images.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.
            features: output of the previous exit's last block, ``[B, n, C]``; read with ``feature_reuse``.
            relations: for each layer of the previous exit its attention logits, ``[B, H, n, n]``; read with
                ``relation_reuse``.
            return_relations: also return this exit's.

        Returns:
            The logits ``[B, num_classes]``; the last block's output ``[B, N, C]``; for each layer its attention logits
            ``[B, H, N, N]`` if requested.
        """
        x = self.embed(images)
        biases = None if self.relation_reuse is None else self.relation_reuse(relations)
        x, returned = run_reuse_blocks(self.blocks, x, features, biases, return_relations)
        return self.head(self.norm(x[:, 0])), x, returned

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block."""
        tokens = self.join_tokens(self.patch_embed(images), before=self.cls_token)
        return self.pos_drop(self.add_positions(tokens, positions=self.pos_embed))


def run_reuse_blocks(
    blocks: Iterable[Callable[..., tuple[Tensor, Tensor | None]]],
    x: Tensor,
    features: Tensor | None,
    biases: Iterable[Tensor] | None,
    return_relations: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs the blocks of an exit.

    Args:
        blocks: ``ReuseBlock`` modules, or functions with their signature.
        x: tokens ``[B, N, C]``.
        features: output of the previous exit's last block, or None.
        biases: attention biases from ``RelationReuse``, one per block, computed lazily; or None.
        return_relations: also return the blocks' attention logits.

    Returns:
        The last block's output ``[B, N, C]``; for each block its attention logits ``[B, H, N, N]`` if requested.
    """
    returned = []
    blocks = list(blocks)
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
