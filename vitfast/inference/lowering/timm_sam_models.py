"""Lowering of timm's ``VisionTransformerSAM``; imported only if timm is imported already."""

from __future__ import annotations

from dataclasses import replace

import timm.layers
from timm.models.vision_transformer_sam import Attention, Block, VisionTransformerSAM
from torch import nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    QueryBiasSpec,
    ReadoutSpec,
    TransformerSpec,
    WindowSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering import timm_models
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_MODEL = "patch_embed pos_drop patch_drop norm_pre rope_global rope_window blocks neck head".split()
_BLOCK = "norm1 attn ls1 drop_path1 norm2 mlp ls2 drop_path2".split()
_ATTENTION = "qkv q_norm k_norm attn_drop proj proj_drop rope".split()


def lower_model(part: Part) -> TransformerSpec:
    """Lowers SAM's image encoder, with windows beside global attention.

    Raises:
        NotRecognised: it is something else, has rotary embeddings, or any part of it was changed.
    """
    model = part.expect(VisionTransformerSAM, children=_MODEL, tensors=("pos_embed",))
    common.passes_in_evaluation(part["pos_drop"], part["patch_drop"], part["rope_global"], part["rope_window"])
    _check_neck(part["neck"])
    is_dynamic = not model.patch_embed.strict_img_size
    return TransformerSpec(
        EmbeddingSpec(
            timm_models.patches(part["patch_embed"], is_dynamic, returns_grid=True),
            (),
            None if model.pos_embed is None else model.pos_embed.flatten(1, 2),
            common.optional_norm(part["norm_pre"]),
            "bicubic_antialias" if is_dynamic else "no",
        ),
        common.all_blocks(part["blocks"], _block),
        None,
        (_readout(part["head"]),),
        neck=model.neck,
    )


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a block takes a grid of tokens."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _check_neck(part: Part) -> None:
    """Checks the convolutions after the last block, or the norm that replaces them."""
    layers = [part]
    if isinstance(part.module, nn.Sequential):
        layers = part.children()
        part.expect(nn.Sequential, children=part.module._modules)
    for layer in layers:
        layer.expect(nn.Conv2d, timm.layers.LayerNorm2d, nn.Identity, tensors=("weight", "bias"))


def _readout(part: Part) -> ReadoutSpec:
    module = part.expect(timm.layers.ClassifierHead, children=("global_pool", "drop", "fc", "flatten"))
    common.passes_in_evaluation(part["drop"])
    if module.global_pool.pool_type == "avg":
        return ReadoutSpec("mean", layers=common.head_layers(part["fc"]))
    if module.global_pool.pool_type == "" and part["fc"].is_identity:
        return ReadoutSpec("grid")
    raise NotRecognised(part.name, f"pools by {module.global_pool.pool_type!r}")


def _block(part: Part) -> BlockSpec:
    module = part.expect(Block, children=_BLOCK)
    common.passes_in_evaluation(part["drop_path1"], part["drop_path2"])
    attention = _attention(part["attn"])
    if module.window_size:
        attention = replace(attention, windows=WindowSpec((module.window_size, module.window_size)))
    return BlockSpec(
        part.name,
        common.norm(part["norm1"]),
        attention,
        common.norm(part["norm2"]),
        timm_models.mlp(part["mlp"]),
        common.layer_scale(part["ls1"], timm.layers.LayerScale, "gamma"),
        common.layer_scale(part["ls2"], timm.layers.LayerScale, "gamma"),
    )


def _attention(part: Part) -> AttentionSpec:
    module = part.expect(Attention, children=_ATTENTION, tensors=("rel_pos_h", "rel_pos_w"))
    common.passes_in_evaluation(part["attn_drop"], part["proj_drop"], part["q_norm"], part["k_norm"], part["rope"])
    bias = QueryBiasSpec(module.rel_pos_h, module.rel_pos_w) if module.use_rel_pos else None
    qkv, proj = common.linear(part["qkv"]), common.linear(part["proj"])
    return AttentionSpec(qkv, module.num_heads, module.head_dim, float(module.scale), proj, bias=bias)
