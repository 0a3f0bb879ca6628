"""Layers that call the CPU operators on packed weights (``vitfast.ops.packed``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.modules.attention import (
    BiasedAttention,
    InferenceAttention,
    PerformerAttention,
    RelationAttention,
)
from vitfast.inference.modules.block import InferenceBlock, InferenceMlp, Positions, PostNormBlock
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.norm import InferenceNorm
from vitfast.inference.modules.patches import Patches, SplitLinear
from vitfast.inference.modules.position_bias import BiasTables
from vitfast.inference.modules.token_merging import MergedTokens, MergingBlock, TokenMerging
from vitfast.layers.rotary import RotaryTables
from vitfast.ops.library import has_kernel
from vitfast.ops.packed import BlockParameters, BlockPositions


class PackedLinear(InferenceLinear):
    """A linear layer whose weight is packed for this machine's kernels."""

    gemm_name = "packed GEMM"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        norm = self.norm
        if norm is not None and not norm.is_fused_in(self.precision):
            x, norm = norm(x), None
        return self.call(x, norm, residual)

    def call(
        self, x: Tensor, norm: InferenceNorm | None, residual: Tensor | None = None, factor: Tensor | None = None
    ) -> Tensor:
        """Calls the operator with another norm, and multiplies the result by ``factor`` ``[..., O]``."""
        return torch.ops.vitfast.packed_linear.default(
            x,
            *norm_arguments(norm),
            *weight_arguments(self),
            self.precision,
            self.activation,
            self.scale,
            residual,
            factor,
        )

    def _stored(self, weight: Tensor) -> Tensor:
        self.layout: str = torch.ops.vitfast.packed_layout.default(self.precision)
        return torch.ops.vitfast.pack_weight.default(weight.contiguous(), self.precision)

    def _restored(self) -> Tensor:
        return torch.ops.vitfast.unpack_weight.default(self.weight, self.out_features, self.in_features, self.precision)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        here = torch.ops.vitfast.packed_layout.default(self.precision) if has_kernel("packed", "cpu") else "none"
        if here != self.layout:
            raise UserError(
                f"this accelerated model was pickled with weights in layout {self.layout!r}, and vitfast here reads "
                f"{here!r}; pickle the source model instead, and accelerate it here"
            )


class PackedMlp(InferenceMlp):
    """An MLP in one operator, or in three if it normalizes the hidden units; its layers must have one precision."""

    fc1: PackedLinear
    gate: PackedLinear | None

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        fc1, fc2, gate, norm = self.fc1, self.fc2, self.gate, self.norm
        if norm is not None and not norm.is_fused_in(fc1.precision):
            x, norm = norm(x), None
        if fc2.norm is not None:
            factor = None if gate is None else gate.call(x, norm)
            return fc2(fc1.call(x, norm, factor=factor), residual)
        return torch.ops.vitfast.packed_mlp.default(
            x,
            *norm_arguments(norm),
            *weight_arguments(fc1),
            *gate_arguments(gate),
            *weight_arguments(fc2),
            fc1.precision,
            (gate or fc1).activation,
            fc2.scale,
            residual,
        )


class PackedAttention(InferenceAttention):
    """Self-attention in the precision of the block's GEMMs."""

    def forward(self, qkv: Tensor, rotary: RotaryTables | None = None, key_bias: Tensor | None = None) -> Tensor:
        qkv_BN3HD = self.split_heads(qkv)
        out: Tensor = torch.ops.vitfast.packed_attention.default(
            qkv_BN3HD, self.scale, self.precision, *(rotary or ()), key_bias=key_bias
        )
        return out.flatten(-2)


class PackedBiasedAttention(BiasedAttention):
    """Attention with a bias or within windows, in one operator."""

    def forward(self, qkv: Tensor, positions: BiasTables) -> Tensor:  # type: ignore[override]
        qkv_BN3HD = self.split_heads(qkv)
        options = {**positions._asdict(), "padding": self.padding, "cosine": self.cosine}
        out: Tensor = torch.ops.vitfast.packed_attention.default(qkv_BN3HD, self.scale, self.precision, **options)
        return out.flatten(-2)


class PackedRelationAttention(RelationAttention):
    """A DVT's attention, with the upsampling of the bias in the same operator."""

    def attend(
        self, qkv: Tensor, relations: Tensor | None, upsample: Tensor | None, return_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        return torch.ops.vitfast.packed_related_attention.default(qkv, relations, upsample, self.scale, return_logits)


Following = Sequence[tuple["PackedBlock", Positions | None]]  # blocks that run in the operator of the one before them


class PackedBlock(InferenceBlock):
    """A block in one operator; all its layers must have one precision, and no norms but the block's two."""

    is_post_norm = False

    def __init__(self, *arguments: Any, **norms: Any) -> None:
        super().__init__(*arguments, **norms)
        attention: Any = self.attention
        qkv, proj, fc1, fc2 = self.qkv, self.proj, self.mlp.fc1, self.mlp.fc2
        # collected once: looking them up at each call takes longer than the call itself
        norm1_weight, norm1_bias, eps1 = norm_arguments(norms.get("norm1", qkv.norm))
        norm2_weight, norm2_bias, eps2 = norm_arguments(norms.get("norm2", self.mlp.norm))
        gate, gate_bias = gate_arguments(self.mlp.gate)
        self.packed_parameters = BlockParameters(
            *(norm1_weight, norm1_bias, qkv.weight, qkv.bias, proj.weight, proj.bias, proj.scale),
            *(norm2_weight, norm2_bias, fc1.weight, fc1.bias, gate, gate_bias, fc2.weight, fc2.bias, fc2.scale),
            getattr(attention, "cosine", None),
        )
        heads = (attention.heads, attention.head_dim, attention.scale)
        activation = (self.mlp.gate or fc1).activation
        self.options = (eps1, eps2, *heads, fc1.out_features, activation, proj.precision)

    @property
    def path(self) -> str:
        return f"one packed operator, {self.proj.precision}"

    def joins(self, block: nn.Module) -> bool:
        return type(block) is type(self) and block.options == self.options

    def parameters_with(self, following: Following) -> list[Tensor | None]:
        """The operators' argument for this block and those after it."""
        return list(chain(self.packed_parameters, *(block.packed_parameters for block, _ in following)))

    def forward(self, x: Tensor, positions: Positions | None = None, following: Following = ()) -> Tensor:
        """As the base class, and then the blocks of ``following``, in the same operator."""
        of_blocks = [positions, *(one for _, one in following)]
        return torch.ops.vitfast.packed_blocks.default(
            x.contiguous(),
            self.parameters_with(following),
            list(chain(*map(position_arguments, of_blocks))),
            *self.options,
            is_interleaved=any(isinstance(one, RotaryTables) and one.is_interleaved for one in of_blocks),
            is_post_norm=self.is_post_norm,
        )


class PackedPostNormBlock(PackedBlock, PostNormBlock):
    """A post-norm block in one operator, as ``PackedBlock``."""

    is_post_norm = True


class PackedTokenMerging(TokenMerging):
    """Matches and merges tokens in one operator."""

    def merge(
        self, x: Tensor, keys_BNHD: Tensor, sizes: Tensor | None, count: int, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.vitfast.merge_tokens.default(x, keys_BNHD, sizes, count, prefix)


class PackedMergingBlock(MergingBlock, PackedBlock):
    """A block that merges tokens in one operator, as ``PackedBlock``."""

    def joins(self, block: nn.Module) -> bool:
        return isinstance(block, PackedMergingBlock) and (
            (block.options, block.merging.count) == (self.options, self.merging.count)
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, merged: MergedTokens | None = None, following: Following = ()
    ) -> Tensor:
        if merged is None:
            return PackedBlock.forward(self, x, following=following)
        x, sizes, places = torch.ops.vitfast.packed_merging_blocks.default(
            x.contiguous(),
            merged.sizes,
            self.parameters_with(following),
            *self.options,
            self.merging.count,
            merged.prefix,
        )
        merged.update(sizes, places)
        return x


class PackedPatches(Patches):
    """Gathers and projects non-overlapping patches in one operator, which also reads uint8 images.

    It adds positions, too, unless a norm comes first.
    """

    @property
    def path(self) -> str:
        return f"one packed operator, {self.linear.precision}"

    def forward(self, images: Tensor) -> Tensor:
        no_prefix = images.new_empty((0, self.linear.out_features), dtype=torch.float32)
        return self.norm(self._embedded(images, no_prefix, None))

    def tokens(self, images: Tensor, prefix: Tensor, positions: Tensor | None) -> Tensor:
        if isinstance(self.norm, nn.Identity):
            return self._embedded(images, prefix, positions)
        return super().tokens(images, prefix, positions)

    def _embedded(self, images: Tensor, prefix: Tensor, positions: Tensor | None) -> Tensor:
        images = self.padded(images).contiguous()
        return torch.ops.vitfast.packed_patch_embed.default(
            images, *weight_arguments(self.linear), *self.patch_size, prefix, positions, self.linear.precision
        )


class PackedSplitLinear(SplitLinear):
    """A projection of overlapping patches in one operator; LayerNorm and layer must have one precision."""

    def project(self, images: Tensor) -> Tensor:
        linear = self.linear
        return torch.ops.vitfast.packed_split_linear.default(
            images,
            self.patch,
            self.stride,
            self.padding,
            *norm_arguments(self.norm),
            *weight_arguments(linear),
            linear.precision,
        )


class PackedPerformerAttention(PerformerAttention):
    """A performer's attention in one operator."""

    def forward(self, kqv: Tensor, v: Tensor) -> Tensor:
        return torch.ops.vitfast.packed_performer.default(kqv, self.projection, self.epsilon)


def position_arguments(positions: Positions | None) -> BlockPositions:
    """The operator's arguments for the positions of a block."""
    if isinstance(positions, BiasTables):
        return BlockPositions(**positions._asdict())
    return BlockPositions(rotary=None if positions is None else positions.tables)


def norm_arguments(norm: InferenceNorm | None) -> tuple[Tensor | None, Tensor | None, float | None]:
    """The operators' arguments for an optional LayerNorm."""
    return (None, None, None) if norm is None else (norm.weight, norm.bias, norm.eps)


def weight_arguments(linear: InferenceLinear) -> tuple[Tensor, Tensor | None, int]:
    """The operators' arguments for a linear layer: packed weight, bias and number of outputs."""
    return linear.weight, linear.bias, linear.out_features


def gate_arguments(gate: InferenceLinear | None) -> tuple[Tensor | None, Tensor | None]:
    """The operators' arguments for the gate of an MLP: packed weight and bias."""
    return (None, None) if gate is None else (gate.weight, gate.bias)
