"""Lowering of timm's Swin Transformers, V1 and V2; imported only if timm is imported already."""

from __future__ import annotations

import math

import timm.layers
import torch
from timm.models import swin_transformer as v1
from timm.models import swin_transformer_v2 as v2
from torch import nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    MergeSpec,
    ReadoutSpec,
    RelativeBiasSpec,
    TransformerSpec,
    WindowSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering import timm_models
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_BLOCK = "norm1 attn drop_path1 norm2 mlp drop_path2".split()
_ATTENTION = "qkv attn_drop proj proj_drop softmax cpb_mlp".split()
_TENSORS = ("relative_position_bias_table", "relative_position_index", "relative_coords_table", "logit_scale")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers timm's ``SwinTransformer`` or ``SwinTransformerV2``.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    classes = (v1.SwinTransformer, v2.SwinTransformerV2)
    model = part.expect(*classes, children=("patch_embed", "layers", "norm", "head"))
    is_dynamic = not model.patch_embed.strict_img_size
    patches = timm_models.patches(part["patch_embed"], is_dynamic, returns_grid=True)
    blocks: list[BlockSpec | MergeSpec] = []
    stages: list[int] = []
    for stage in part["layers"].children():
        stage.expect(v1.SwinTransformerStage, v2.SwinTransformerV2Stage, children=("downsample", "blocks"))
        if not stage["downsample"].is_identity:
            blocks.append(_merging(stage["downsample"]))
        blocks += common.all_blocks(stage["blocks"], _block)
        stages.append(len(blocks))
    return TransformerSpec(
        EmbeddingSpec(patches, (), None, resize="bicubic_antialias" if is_dynamic else "no"),
        tuple(blocks),
        common.norm(part["norm"]),
        (_readout(part["head"]),),
        stages=tuple(stages),
    )


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a block takes a grid of tokens."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _block(part: Part) -> BlockSpec:
    module = part.expect(v1.SwinTransformerBlock, v2.SwinTransformerV2Block, children=_BLOCK, tensors=("attn_mask",))
    common.passes_in_evaluation(part["drop_path1"], part["drop_path2"])
    windows = WindowSpec(tuple(module.window_size), tuple(module.shift_size))
    return BlockSpec(
        part.name,
        common.norm(part["norm1"]),
        _attention(part["attn"], windows),
        common.norm(part["norm2"]),
        timm_models.mlp(part["mlp"]),
        is_post_norm=isinstance(module, v2.SwinTransformerV2Block),
    )


def _attention(part: Part, windows: WindowSpec) -> AttentionSpec:
    tensors = (*_TENSORS, *timm_models.QKV_BIASES)
    module = part.expect(v1.WindowAttention, v2.WindowAttention, children=_ATTENTION, tensors=tensors)
    common.passes_in_evaluation(part["attn_drop"], part["proj_drop"])
    qkv, proj = timm_models.qkv_with_separate_biases(part), common.linear(part["proj"])
    head_dim = qkv.out_features // 3 // module.num_heads
    heads = (module.num_heads, head_dim)
    size = tuple(module.window_size)
    if isinstance(module, v1.WindowAttention):
        bias = RelativeBiasSpec(module.relative_position_bias_table, size)
        return AttentionSpec(qkv, *heads, float(module.scale), proj, bias=bias, windows=windows)
    mlp = part["cpb_mlp"]
    mlp.expect(nn.Sequential, children=("0", "1", "2"))
    table = 16 * torch.sigmoid(common.position_mlp(module.relative_coords_table, *mlp.children()))
    cosine = torch.clamp(module.logit_scale.detach(), max=math.log(100)).exp().flatten()
    return AttentionSpec(qkv, *heads, 1.0, proj, bias=RelativeBiasSpec(table, size), windows=windows, cosine=cosine)


def _merging(part: Part) -> MergeSpec:
    module = part.expect(v1.PatchMerging, v2.PatchMerging, children=("norm", "reduction"))
    linear, norm = common.linear(part["reduction"]), common.norm(part["norm"])
    if isinstance(module, v1.PatchMerging):
        return MergeSpec(part.name, norm, linear)
    return MergeSpec(part.name, None, linear, norm)


def _readout(part: Part) -> ReadoutSpec:
    module = part.expect(timm.layers.ClassifierHead, children=("global_pool", "drop", "fc", "flatten"))
    common.passes_in_evaluation(part["drop"], part["flatten"])
    if module.global_pool.pool_type != "avg":
        raise NotRecognised(part.name, f"pools by {module.global_pool.pool_type!r}")
    return ReadoutSpec("mean", layers=common.head_layers(part["fc"]))
