"""Builds accelerated models with packed weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitfast.inference.backend import Backend, Layer
from vitfast.inference.cpu.packed_layers import (
    PackedAttention,
    PackedBiasedAttention,
    PackedBlock,
    PackedLinear,
    PackedMergingBlock,
    PackedMlp,
    PackedPatches,
    PackedPerformerAttention,
    PackedPostNormBlock,
    PackedRelationAttention,
    PackedSplitLinear,
    PackedTokenMerging,
)
from vitfast.inference.ir import Precision
from vitfast.inference.modules.attention import (
    BiasedAttention,
    InferenceAttention,
    PerformerAttention,
    RelationAttention,
)
from vitfast.inference.modules.block import InferenceBlock, InferenceMlp, PostNormBlock
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.norm import InferenceNorm
from vitfast.inference.modules.patches import Patches, SplitLinear
from vitfast.inference.modules.token_merging import MergingBlock, TokenMerging
from vitfast.ops.library import build_info

# layers that one operator computes
_PACKED: dict[type[nn.Module], type[nn.Module]] = {
    BiasedAttention: PackedBiasedAttention,
    InferenceAttention: PackedAttention,
    InferenceBlock: PackedBlock,
    InferenceMlp: PackedMlp,
    MergingBlock: PackedMergingBlock,
    Patches: PackedPatches,
    PerformerAttention: PackedPerformerAttention,
    PostNormBlock: PackedPostNormBlock,
    RelationAttention: PackedRelationAttention,
    SplitLinear: PackedSplitLinear,
    TokenMerging: PackedTokenMerging,
}


class CpuBackend(Backend):
    """Packs weights for this CPU's kernels; requires the CPU library.

    Layers of different precisions (in a quantized model) are not fused.
    """

    @staticmethod
    def describe_kernels(body: nn.Module, device_type: str) -> str:
        return str(build_info()["cpu"]["instruction_set"])

    def linear_class(self, precision: Precision) -> type[InferenceLinear]:
        return PackedLinear

    def layer_class(self, base: type[Layer], *parts: Any) -> type[Layer]:
        inside = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
        precisions = {module.precision for module in inside if isinstance(module, InferenceLinear)}
        norms = [module for module in inside if isinstance(module, InferenceNorm)]
        is_fused = len(precisions) <= 1
        if base is Patches:
            is_fused = precisions != {"int8"}  # a norm is called after the operator
        elif base is not InferenceMlp:
            is_fused = is_fused and all(norm.is_fused_in(one) for norm in norms for one in precisions)
        if base in (InferenceBlock, MergingBlock, PostNormBlock):
            _, attention, proj, mlp, *norms_after = parts
            is_packed = isinstance(attention, (PackedAttention, PackedBiasedAttention))
            is_fused = is_fused and is_packed and proj.norm is None and mlp.fc2.norm is None
            is_fused = is_fused and all(norm.is_fused_in("fp32") for norm in norms_after)
        packed: Any = _PACKED.get(base)
        return packed if is_fused and packed is not None else base
