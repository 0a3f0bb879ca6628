"""Layers that call the CPU operators on packed weights (``vitfast.ops.packed``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.ir import Activation, PatchesSpec, Precision
from vitfast.inference.modules.attention import (
    GatedAttention,
    InferenceAttention,
    PerformerAttention,
    RelationAttention,
)
from vitfast.inference.modules.block import InferenceBlock, InferenceMlp
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.norm import InferenceNorm, NormLinear
from vitfast.inference.modules.patches import Patches, SplitLinear
from vitfast.ops.library import has_kernel


class PackedLinear(InferenceLinear):
    """A linear layer whose weight is packed for this machine's kernels."""

    gemm_name = "packed GEMM"

    def forward(
        self,
        x: Tensor,
        activation: Activation = "none",
        *,
        scale: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        return torch.ops.vitfast.packed_linear.default(
            x, self.weight, self.bias, self.out_features, self.precision, activation, scale, residual
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


class PackedNormLinear(NormLinear):
    """``linear(norm(x))`` in one operator; both must have one precision."""

    def forward(self, x: Tensor) -> Tensor:
        linear = self.linear
        return torch.ops.vitfast.packed_norm_linear.default(
            x, *norm_arguments(self.norm), linear.weight, linear.bias, linear.out_features, linear.precision, "none"
        )


class PackedMlp(InferenceMlp):
    """An MLP in one operator; its layers must have one precision."""

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return torch.ops.vitfast.packed_mlp.default(
            x,
            *norm_arguments(self.norm),
            self.fc1.weight,
            self.fc1.bias,
            self.fc1.out_features,
            self.fc2.weight,
            self.fc2.bias,
            self.fc2.out_features,
            self.fc1.precision,
            self.activation,
            self.scale,
            residual,
        )


class PackedAttention(InferenceAttention):
    """Self-attention in the precision of the block's GEMMs."""

    def __init__(self, heads: int, head_dim: int, scale: float, *, precision: Precision) -> None:
        super().__init__(heads, head_dim, scale)
        self.precision = precision

    def forward(self, qkv: Tensor) -> Tensor:
        out: Tensor = torch.ops.vitfast.packed_attention.default(self.split_heads(qkv), self.scale, self.precision)
        return out.flatten(-2)


class PackedRelationAttention(RelationAttention):
    """A DVT's attention, with the upsampling of the bias in the same operator."""

    def attend(
        self, qkv: Tensor, relations: Tensor | None, upsample: Tensor | None, return_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        return torch.ops.vitfast.packed_related_attention.default(qkv, relations, upsample, self.scale, return_logits)


class PackedBlock(InferenceBlock):
    """A block in one operator; all its layers must have one precision."""

    def __init__(
        self,
        name: str,
        qkv: NormLinear,
        attention: InferenceAttention | GatedAttention,
        proj: InferenceLinear,
        scale1: Tensor | None,
        mlp: InferenceMlp,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(name, qkv, attention, proj, scale1, mlp, dtype)
        assert isinstance(attention, PackedAttention)
        # collected once: looking them up at each call takes longer than the call itself
        self._arguments = (
            *norm_arguments(qkv.norm),
            qkv.linear.weight,
            qkv.linear.bias,
            attention.heads,
            attention.head_dim,
            attention.scale,
            proj.weight,
            proj.bias,
            scale1,
            *norm_arguments(mlp.norm),
            mlp.fc1.weight,
            mlp.fc1.bias,
            mlp.fc1.out_features,
            mlp.fc2.weight,
            mlp.fc2.bias,
            mlp.scale,
            mlp.activation,
            proj.precision,
        )

    @property
    def path(self) -> str:
        return f"one packed operator, {self.proj.precision}"

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.vitfast.packed_block.default(x.contiguous(), *self._arguments)


class PackedPatches(Patches):
    """Gathers, projects and positions non-overlapping patches in one operator, which also reads uint8 images."""

    def __init__(self, spec: PatchesSpec, linear: InferenceLinear, norm: nn.Module, *, reads_pixels: bool) -> None:
        super().__init__(spec, linear, norm, reads_pixels=reads_pixels)
        self.path = f"one packed operator, {linear.precision}"

    def tokens(self, images: Tensor, prefix: Tensor, positions: Tensor | None) -> Tensor:
        linear = self.linear
        return torch.ops.vitfast.packed_patch_embed.default(
            self.padded(images).contiguous(),
            linear.weight,
            linear.bias,
            linear.out_features,
            *self.patch_size,
            prefix,
            positions,
            linear.precision,
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
            linear.weight,
            linear.bias,
            linear.out_features,
            linear.precision,
        )


class PackedPerformerAttention(PerformerAttention):
    """A performer's attention in one operator."""

    def forward(self, kqv: Tensor, v: Tensor) -> Tensor:
        return torch.ops.vitfast.packed_performer.default(kqv, self.projection, self.epsilon)


def same_precision(norms: Sequence[InferenceNorm | None], linears: Sequence[InferenceLinear]) -> bool:
    """Whether layers compute in one precision, so that one operator can run them."""
    precisions = {linear.precision for linear in linears}
    rounds = {norm.rounds_input for norm in norms if norm is not None}
    return len(precisions) == 1 and rounds <= {precisions == {"fp16_32"}}


def norm_arguments(norm: InferenceNorm | None) -> tuple[Tensor | None, Tensor | None, float | None]:
    """The operators' arguments for an optional LayerNorm."""
    return (None, None, None) if norm is None else (norm.weight, norm.bias, norm.eps)
