"""Lowering of timm's models with relative position bias: ``Beit`` and ``VisionTransformerRelPos``."""

from __future__ import annotations

from collections.abc import Callable

import timm.layers
import torch
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit, RelativePositionBias
from timm.models.beit import Block as BeitBlock
from timm.models.vision_transformer_relpos import (
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import nn

from vitfast.inference.ir import AttentionSpec, BlockSpec, EmbeddingSpec, RelativeBiasSpec, TransformerSpec
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering import timm_models
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_BEIT = "patch_embed pos_drop rel_pos_bias blocks norm fc_norm head_drop head".split()
_REL_POS = "patch_embed shared_rel_pos blocks norm fc_norm head_drop head".split()
_TENSORS = ("cls_token", "pos_embed")
_TABLE = ("relative_position_bias_table", "relative_position_index")
_BEIT_BLOCK = "norm1 attn drop_path1 norm2 mlp drop_path2".split()
_BEIT_ATTENTION = "qkv attn_drop proj proj_drop".split()
_REL_POS_ATTENTION = "qkv q_norm k_norm rel_pos attn_drop proj proj_drop".split()


def lower_model(part: Part) -> TransformerSpec:
    """Lowers timm's ``Beit`` or ``VisionTransformerRelPos``.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    is_beit = isinstance(part.module, Beit)
    children, shared = (_BEIT, part["rel_pos_bias"]) if is_beit else (_REL_POS, part["shared_rel_pos"])
    model = part.expect(Beit, VisionTransformerRelPos, children=children, tensors=_TENSORS)
    common.passes_in_evaluation(part["pos_drop"], part["head_drop"])
    bias = None
    if shared.module is not None:
        bias = _table_bias(shared) if is_beit else _bias(shared)
    lower_attention = _beit_attention if is_beit else _rel_pos_attention

    def lower(block: Part) -> BlockSpec:
        return _block(block, bias, lower_attention)

    return TransformerSpec(
        EmbeddingSpec(
            timm_models.patches(part["patch_embed"], is_dynamic=False),
            () if model.cls_token is None else (model.cls_token,),
            getattr(model, "pos_embed", None),
        ),
        common.all_blocks(part["blocks"], lower),
        common.optional_norm(part["norm"]),
        (timm_models.readout(part, pools_prefix=False),),
    )


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a block is called with a shared bias."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _block(
    part: Part,
    bias: RelativeBiasSpec | None,
    lower_attention: Callable[[Part, RelativeBiasSpec | None], AttentionSpec],
) -> BlockSpec:
    children = (*_BEIT_BLOCK, "ls1", "ls2")
    module = part.expect(BeitBlock, RelPosBlock, ResPostRelPosBlock, children=children, tensors=("gamma_1", "gamma_2"))
    common.passes_in_evaluation(part["drop_path1"], part["drop_path2"])
    scale1, scale2 = (common.layer_scale(part[name], timm.layers.LayerScale, "gamma") for name in ("ls1", "ls2"))
    if isinstance(module, BeitBlock):
        scale1, scale2 = module.gamma_1, module.gamma_2
    return BlockSpec(
        part.name,
        common.norm(part["norm1"]),
        lower_attention(part["attn"], bias),
        common.norm(part["norm2"]),
        timm_models.mlp(part["mlp"]),
        scale1,
        scale2,
        is_post_norm=isinstance(module, ResPostRelPosBlock),
    )


def _beit_attention(part: Part, shared: RelativeBiasSpec | None) -> AttentionSpec:
    module = part.expect(BeitAttention, children=_BEIT_ATTENTION, tensors=(*timm_models.QKV_BIASES, *_TABLE))
    common.passes_in_evaluation(part["attn_drop"], part["proj_drop"])
    bias = shared
    if module.relative_position_bias_table is not None:
        if shared is not None:
            raise NotRecognised(part.name, "has a bias of its own beside the shared one")
        bias = RelativeBiasSpec(module.relative_position_bias_table, module.window_size, has_class_token=True)
    qkv = timm_models.qkv_with_separate_biases(part)
    head_dim = qkv.out_features // 3 // module.num_heads
    return AttentionSpec(qkv, module.num_heads, head_dim, float(module.scale), common.linear(part["proj"]), bias=bias)


def _rel_pos_attention(part: Part, shared: RelativeBiasSpec | None) -> AttentionSpec:
    module = part.expect(RelPosAttention, children=_REL_POS_ATTENTION)
    common.passes_in_evaluation(part["attn_drop"], part["proj_drop"])
    if not (part["q_norm"].is_identity and part["k_norm"].is_identity):
        raise NotRecognised(part["q_norm"].name, "normalizes queries that have a position bias")
    bias = shared if part["rel_pos"].module is None else _bias(part["rel_pos"])
    qkv, proj = common.linear(part["qkv"]), common.linear(part["proj"])
    return AttentionSpec(qkv, module.num_heads, module.head_dim, float(module.scale), proj, bias=bias)


def _table_bias(part: Part) -> RelativeBiasSpec:
    module = part.expect(RelativePositionBias, timm.layers.RelPosBias, tensors=_TABLE)
    has_class_token = isinstance(module, RelativePositionBias) or module.prefix_tokens > 0
    return RelativeBiasSpec(module.relative_position_bias_table, module.window_size, has_class_token)


def _bias(part: Part) -> RelativeBiasSpec:
    if isinstance(part.module, timm.layers.RelPosBias):
        return _table_bias(part)
    tensors = ("relative_position_index", "rel_coords_log")
    module = part.expect(timm.layers.RelPosMlp, children=("mlp", "bias_act"), tensors=tensors)
    part["mlp"].expect(timm.layers.Mlp, children=("fc1", "act", "drop1", "norm", "fc2", "drop2"))
    part["bias_act"].expect(nn.Identity, nn.Sigmoid)
    mlp = part["mlp"]
    table = common.position_mlp(module.rel_coords_log, mlp["fc1"], mlp["act"], mlp["fc2"])
    table = module.bias_act(table) * (module.bias_gain or 1)
    if module.prefix_tokens:
        table = torch.cat([table, table.new_zeros(3, table.shape[1])])
    return RelativeBiasSpec(table, module.window_size, module.prefix_tokens > 0)
