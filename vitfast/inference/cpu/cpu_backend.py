"""Builds accelerated models with packed weights."""

from __future__ import annotations

from torch import Tensor, nn

from vitfast.inference.backend import Backend
from vitfast.inference.cpu.packed_layers import (
    PackedAttention,
    PackedBlock,
    PackedLinear,
    PackedMlp,
    PackedNormLinear,
    PackedPatches,
    PackedPerformerAttention,
    PackedRelationAttention,
    PackedSplitLinear,
    same_precision,
)
from vitfast.inference.ir import Activation, AttentionSpec, Precision
from vitfast.inference.modules.attention import InferenceAttention
from vitfast.inference.modules.block import InferenceBlock, InferenceMlp
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.norm import InferenceNorm, NormLinear
from vitfast.inference.modules.patches import Patches, SplitLinear
from vitfast.ops.library import build_info


class CpuBackend(Backend):
    """Packs weights for this CPU's kernels; requires the CPU library.

    Layers of different precisions (in a quantized model) are not fused.
    """

    relation_attention_class = PackedRelationAttention
    performer_class = PackedPerformerAttention

    def describe_kernels(self, body: nn.Module) -> str:
        return str(build_info()["cpu"]["instruction_set"])

    def linear_class(self, precision: Precision) -> type[InferenceLinear]:
        return PackedLinear

    def norm_linear_class(self, norm: InferenceNorm, linear: InferenceLinear) -> type[NormLinear]:
        return PackedNormLinear if same_precision([norm], [linear]) else NormLinear

    def mlp_class(
        self,
        norm: InferenceNorm | None,
        fc1: InferenceLinear,
        activation: Activation,
        fc2: InferenceLinear,
        scale: Tensor | None,
    ) -> type[InferenceMlp]:
        return PackedMlp if same_precision([norm], [fc1, fc2]) else InferenceMlp

    def block_class(
        self, qkv: NormLinear, attention: nn.Module, proj: InferenceLinear, mlp: InferenceMlp
    ) -> type[InferenceBlock]:
        is_fused = (
            isinstance(mlp, PackedMlp)
            and isinstance(attention, PackedAttention)
            and same_precision([qkv.norm, mlp.norm], [qkv.linear, proj, mlp.fc1])
        )
        return PackedBlock if is_fused else InferenceBlock

    def split_linear_class(self, norm: InferenceNorm | None, linear: InferenceLinear) -> type[SplitLinear]:
        return PackedSplitLinear if same_precision([norm], [linear]) else SplitLinear

    def patches_class(self, linear: InferenceLinear, norm: nn.Module) -> type[Patches]:
        return PackedPatches if isinstance(norm, nn.Identity) and linear.precision != "int8" else Patches

    def content_attention(self, spec: AttentionSpec) -> InferenceAttention:
        precision = spec.qkv.precision or self.precision
        return PackedAttention(spec.heads, spec.head_dim, spec.scale, precision=precision)
