"""Lowering of timm's ``VisionTransformer`` and distilled DeiT; imported only if timm is imported already."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import timm.layers
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    LinearSpec,
    MapPoolSpec,
    MlpSpec,
    PatchesSpec,
    Pooling,
    ReadoutSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_MODEL = "patch_embed pos_drop patch_drop norm_pre blocks norm attn_pool fc_norm head_drop head head_dist".split()
_BLOCK = "norm1 attn ls1 drop_path1 norm2 mlp ls2 drop_path2".split()
_ATTENTION = "qkv q_norm k_norm attn_drop norm proj proj_drop".split()
_MLP = "fc1 fc1_g fc1_x act drop1 norm fc2 drop2".split()
_POOL = "q kv q_norm k_norm proj proj_drop norm mlp".split()
_PREFIX = ("cls_token", "dist_token", "reg_token")
QKV_BIASES = ("q_bias", "k_bias", "v_bias")
_POOLING: dict[str, Pooling] = {"token": "token", "avg": "mean", "": "all", "map": "map"}


def lower_model(part: Part) -> TransformerSpec:
    """Lowers timm's ``VisionTransformer``: registers, no class token, any of its poolings but maxima.

    Raises:
        NotRecognised: it is something else, or something outside its blocks was changed.
    """
    classes = (VisionTransformer, VisionTransformerDistilled)
    model = part.expect(*classes, children=_MODEL, tensors=(*_PREFIX, "pos_embed"))
    common.passes_in_evaluation(part["pos_drop"], part["patch_drop"], part["head_drop"])
    tokens = (getattr(model, name, None) for name in _PREFIX)
    is_dynamic = model.dynamic_img_size
    if isinstance(model, VisionTransformerDistilled):
        heads = enumerate(("head", "head_dist"))
        readouts = tuple(ReadoutSpec("token", index, layers=common.head_layers(part[name])) for index, name in heads)
    else:
        readouts = (readout(part, pools_prefix=model.pool_include_prefix),)
    return TransformerSpec(
        EmbeddingSpec(
            patches(part["patch_embed"], is_dynamic),
            tuple(token for token in tokens if token is not None),
            model.pos_embed,
            common.optional_norm(part["norm_pre"]),
            "bicubic_antialias" if is_dynamic else "no",
        ),
        common.blocks(part["blocks"], lower_block),
        common.optional_norm(part["norm"]),
        readouts,
        takes_mean=len(readouts) > 1,
    )


def lower_block(part: Part) -> BlockSpec:
    """Lowers timm's ``Block`` and ``ParallelThingsBlock`` (Touvron et al., 2022)."""
    if type(part.module) is ParallelThingsBlock:
        return _parallel_block(part)
    part.expect(TimmBlock, children=_BLOCK)
    common.passes_in_evaluation(part["drop_path1"], part["drop_path2"])
    return BlockSpec(
        part.name,
        common.norm(part["norm1"]),
        _attention(part["attn"]),
        common.norm(part["norm2"]),
        mlp(part["mlp"]),
        common.layer_scale(part["ls1"], timm.layers.LayerScale, "gamma"),
        common.layer_scale(part["ls2"], timm.layers.LayerScale, "gamma"),
    )


def _parallel_block(part: Part) -> BlockSpec:
    module = part.expect(ParallelThingsBlock, children=("attns", "ffns"))
    blocks = []
    for number in map(str, range(module.num_parallel)):
        attention, feed_forward = part["attns"][number], part["ffns"][number]
        attention.expect(nn.Sequential, children=("norm", "attn", "ls", "drop_path"))
        feed_forward.expect(nn.Sequential, children=("norm", "mlp", "ls", "drop_path"))
        common.passes_in_evaluation(attention["drop_path"], feed_forward["drop_path"])
        blocks.append(
            BlockSpec(
                part.name,
                common.norm(attention["norm"]),
                _attention(attention["attn"]),
                common.norm(feed_forward["norm"]),
                mlp(feed_forward["mlp"]),
                common.layer_scale(attention["ls"], timm.layers.LayerScale, "gamma"),
                common.layer_scale(feed_forward["ls"], timm.layers.LayerScale, "gamma"),
            )
        )
    return replace(blocks[0], parallel=tuple(blocks[1:]))


def patches(part: Part, is_dynamic: bool, *, returns_grid: bool | None = None) -> PatchesSpec:
    """Lowers timm's ``PatchEmbed``.

    Args:
        part: the module.
        is_dynamic: whether the model takes several image sizes.
        returns_grid: whether it returns rows and columns of tokens rather than one row; None: as ``is_dynamic``.

    Raises:
        NotRecognised: it is something else, or it pads images.
    """
    returns_grid = is_dynamic if returns_grid is None else returns_grid
    module = part.expect(timm.layers.PatchEmbed, children=("proj", "norm"))
    if module.img_size is None or module.dynamic_img_pad or module.strict_img_size == is_dynamic:
        raise NotRecognised(part.name, "pads images, or takes any size with fixed positions")
    if module.flatten == returns_grid or (returns_grid and module.output_fmt != "NHWC"):
        raise NotRecognised(part.name, "does not return the tokens as the model expects them")
    found = common.patches_of_convolution(part["proj"], common.pair(module.img_size))
    return replace(found, norm=common.optional_norm(part["norm"]))


def qkv_with_separate_biases(part: Part) -> LinearSpec:
    """Lowers the layer ``qkv`` of an attention module, which may hold its biases in ``QKV_BIASES``."""
    qkv = common.linear(part["qkv"])
    biases = tuple(getattr(part.module, name, None) for name in QKV_BIASES)
    if biases[0] is None:
        return qkv
    if qkv.precision is not None:
        raise NotRecognised(part["qkv"].name, "is quantized, but only its weight is read")
    return LinearSpec(qkv.weights, biases)


def _attention(part: Part) -> AttentionSpec:
    module = part.expect(timm.layers.Attention, children=_ATTENTION)
    common.passes_in_evaluation(part["attn_drop"], part["proj_drop"])
    return AttentionSpec(
        common.linear(part["qkv"]),
        module.num_heads,
        module.head_dim,
        float(module.scale),
        common.linear(part["proj"]),
        common.optional_norm(part["q_norm"]),
        common.optional_norm(part["k_norm"]),
        common.optional_norm(part["norm"]),
    )


def mlp(part: Part) -> MlpSpec:
    """Lowers timm's ``Mlp``, and ``GluMlp`` and ``SwiGLU``, which have a gate."""
    module = part.expect(timm.layers.Mlp, timm.layers.GluMlp, timm.layers.SwiGLU, children=_MLP)
    common.passes_in_evaluation(part["drop1"], part["drop2"])
    gate: Literal["first", "last"] | None = None
    fc1 = [part["fc1"]]
    if isinstance(module, timm.layers.GluMlp):
        gate = "last" if module.gate_last else "first"
    elif isinstance(module, timm.layers.SwiGLU):
        gate, fc1 = "first", [part["fc1_g"], part["fc1_x"]]
    activation, fc2 = common.activation(part["act"]), common.linear(part["fc2"])
    return MlpSpec(common.linear(*fc1), activation, fc2, gate, common.optional_norm(part["norm"]))


def readout(part: Part, *, pools_prefix: bool) -> ReadoutSpec:
    """Lowers pooling and head of a model; ``pools_prefix``: whether tokens before the patches are pooled as well."""
    model = part.module
    pooling = _POOLING.get(model.global_pool)
    if pooling is None:
        raise NotRecognised("", f"pools by {model.global_pool!r}")
    map_pool = None if part["attn_pool"].module is None else _map_pool(part["attn_pool"])
    if (map_pool is not None) != (pooling == "map"):
        raise NotRecognised("", f"pools by {model.global_pool!r}, but has an attn_pool")
    index = 0 if pools_prefix or pooling not in ("mean", "map") else model.num_prefix_tokens
    norm = common.optional_norm(part["fc_norm"])
    return ReadoutSpec(pooling, index, norm, common.head_layers(part["head"]), map_pool)


def _map_pool(part: Part) -> MapPoolSpec:
    module = part.expect(timm.layers.AttentionPoolLatent, children=_POOL, tensors=("latent", "pos_embed"))
    if module.pos_embed is not None or module.mlp is None or module.pool not in ("token", "avg"):
        raise NotRecognised(part.name, "has positions, another pooling or no MLP")
    common.passes_in_evaluation(part["proj_drop"])
    return MapPoolSpec(
        module.latent,
        None if part["q"].is_identity else common.linear(part["q"]),
        common.linear(part["kv"]),
        module.num_heads,
        float(module.scale),
        common.linear(part["proj"]),
        common.optional_norm(part["norm"]),
        mlp(part["mlp"]),
        common.optional_norm(part["q_norm"]),
        common.optional_norm(part["k_norm"]),
        module.pool == "avg",
    )
