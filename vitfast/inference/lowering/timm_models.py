"""Lowering of timm's ``VisionTransformer`` and distilled DeiT; imported only if timm is imported already."""

from __future__ import annotations

from typing import Any

import timm.layers
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    MapPoolSpec,
    MlpSpec,
    PatchesSpec,
    Pooling,
    ReadoutSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, expect

_MODEL = "patch_embed pos_drop patch_drop norm_pre blocks norm attn_pool fc_norm head_drop head head_dist".split()
_BLOCK = "norm1 attn ls1 drop_path1 norm2 mlp ls2 drop_path2".split()
_ATTENTION = "qkv q_norm k_norm attn_drop norm proj proj_drop".split()
_POOL = "q kv q_norm k_norm proj proj_drop norm mlp".split()
_POOLING: dict[str, Pooling] = {"token": "token", "avg": "mean", "": "all", "map": "map"}


def lower_model(model: nn.Module) -> TransformerSpec:
    """Lowers timm's ``VisionTransformer``: registers, no class token, any of its poolings but maxima.

    Raises:
        NotRecognised: it is something else, or something outside its blocks was changed.
    """
    tensors = ("cls_token", "reg_token", "pos_embed", "dist_token")
    checked = expect(model, "", VisionTransformer, VisionTransformerDistilled, children=_MODEL, tensors=tensors)
    for name in ("pos_drop", "patch_drop", "head_drop"):
        common.passes_in_evaluation(name, getattr(checked, name))
    expect(checked.blocks, "blocks", nn.Sequential, children=common.child_names(checked.blocks))
    named = {name: getattr(checked, name, None) for name in ("cls_token", "dist_token", "reg_token")}
    prefix = tuple(token for token in named.values() if token is not None)
    pre_norm = common.optional_norm("norm_pre", checked.norm_pre)
    is_distilled = isinstance(checked, VisionTransformerDistilled)
    return TransformerSpec(
        EmbeddingSpec(
            _patches("patch_embed", checked.patch_embed, checked.dynamic_img_size),
            prefix,
            checked.pos_embed,
            pre_norm,
            "bicubic_antialias" if checked.dynamic_img_size else "no",
        ),
        common.blocks("blocks", checked.blocks, lower_block),
        common.optional_norm("norm", checked.norm),
        _distilled_readouts(checked) if is_distilled else (_readout(checked),),
        "mean" if is_distilled else "one",
    )


def lower_block(name: str, module: nn.Module) -> BlockSpec:
    """Lowers timm's ``Block``."""
    checked = expect(module, name, TimmBlock, children=_BLOCK)
    for part in ("drop_path1", "drop_path2"):
        common.passes_in_evaluation(f"{name}.{part}", getattr(checked, part))
    return BlockSpec(
        name,
        common.norm(f"{name}.norm1", checked.norm1),
        _attention(f"{name}.attn", checked.attn),
        common.norm(f"{name}.norm2", checked.norm2),
        _mlp(f"{name}.mlp", checked.mlp),
        _layer_scale(f"{name}.ls1", checked.ls1),
        _layer_scale(f"{name}.ls2", checked.ls2),
    )


def _patches(name: str, module: nn.Module, is_dynamic: bool) -> PatchesSpec:
    checked = expect(module, name, timm.layers.PatchEmbed, children=("proj", "norm"))
    if checked.img_size is None or checked.dynamic_img_pad or checked.strict_img_size == is_dynamic:
        raise NotRecognised(name, "pads images, or takes any size with fixed positions")
    if checked.flatten == is_dynamic or (is_dynamic and checked.output_fmt != "NHWC"):
        raise NotRecognised(name, "does not return a row of tokens")
    patches = common.patches_of_convolution(f"{name}.proj", checked.proj, common.pair(checked.img_size))
    norm = common.optional_norm(f"{name}.norm", checked.norm)
    return PatchesSpec(
        patches.linear,
        patches.image_size,
        patches.patch_size,
        patches.in_chans,
        padding=patches.padding,
        norm=norm,
    )


def _attention(name: str, module: nn.Module) -> AttentionSpec:
    checked = expect(module, name, timm.layers.Attention, children=_ATTENTION)
    for part in ("attn_drop", "proj_drop", "norm"):
        common.passes_in_evaluation(f"{name}.{part}", getattr(checked, part, nn.Identity()))
    return AttentionSpec(
        common.linear(f"{name}.qkv", checked.qkv),
        checked.num_heads,
        checked.head_dim,
        float(checked.scale),
        common.linear(f"{name}.proj", checked.proj),
        common.optional_norm(f"{name}.q_norm", checked.q_norm),
        common.optional_norm(f"{name}.k_norm", checked.k_norm),
    )


def _mlp(name: str, module: nn.Module) -> MlpSpec:
    checked = expect(module, name, timm.layers.Mlp, children="fc1 act drop1 norm fc2 drop2".split())
    for part in ("drop1", "drop2", "norm"):
        common.passes_in_evaluation(f"{name}.{part}", getattr(checked, part))
    return common.mlp(name, checked.fc1, checked.act, checked.fc2)


def _layer_scale(name: str, module: nn.Module) -> Tensor | None:
    if type(module) is nn.Identity:
        return None
    gamma: Tensor = expect(module, name, timm.layers.LayerScale, tensors=("gamma",)).gamma
    return gamma


def _readout(model: Any) -> ReadoutSpec:
    pooling = _POOLING.get(model.global_pool)
    if pooling is None:
        raise NotRecognised("", f"pools by {model.global_pool!r}")
    map_pool = None if model.attn_pool is None else _map_pool("attn_pool", model.attn_pool)
    if (map_pool is not None) != (pooling == "map"):
        raise NotRecognised("", f"pools by {model.global_pool!r}, but has an attn_pool")
    index = model.num_prefix_tokens if pooling in ("mean", "map") and not model.pool_include_prefix else 0
    norm = common.optional_norm("fc_norm", model.fc_norm)
    return ReadoutSpec(pooling, index, norm, common.head_layers("head", model.head), map_pool)


def _distilled_readouts(model: Any) -> tuple[ReadoutSpec, ReadoutSpec]:
    return (
        ReadoutSpec("token", 0, None, common.head_layers("head", model.head)),
        ReadoutSpec("token", 1, None, common.head_layers("head_dist", model.head_dist)),
    )


def _map_pool(name: str, module: nn.Module) -> MapPoolSpec:
    checked = expect(module, name, timm.layers.AttentionPoolLatent, children=_POOL, tensors=("latent", "pos_embed"))
    if checked.pos_embed is not None or checked.mlp is None or checked.pool not in ("token", "avg"):
        raise NotRecognised(name, "has positions, another pooling or no MLP")
    common.passes_in_evaluation(f"{name}.proj_drop", checked.proj_drop)
    return MapPoolSpec(
        checked.latent,
        None if type(checked.q) is nn.Identity else common.linear(f"{name}.q", checked.q),
        common.linear(f"{name}.kv", checked.kv),
        checked.num_heads,
        float(checked.scale),
        common.linear(f"{name}.proj", checked.proj),
        common.optional_norm(f"{name}.norm", checked.norm),
        _mlp(f"{name}.mlp", checked.mlp),
        common.optional_norm(f"{name}.q_norm", checked.q_norm),
        common.optional_norm(f"{name}.k_norm", checked.k_norm),
        checked.pool == "avg",
    )
