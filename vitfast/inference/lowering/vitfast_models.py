"""Lowering of vitfast's models."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitfast import layers
from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    CascadeSpec,
    ConvStemSpec,
    EmbeddingSpec,
    LinearSpec,
    MapPoolSpec,
    MlpSpec,
    ModelSpec,
    PatchesSpec,
    Pooling,
    ReadoutSpec,
    ReuseSpec,
    RotarySpec,
    SplitSpec,
    TokenMixerSpec,
    TokensToTokenSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, Part, precision_of
from vitfast.layers.relation_reuse import RelationAttention
from vitfast.layers.rotary import ROTARY_SCHEMES
from vitfast.layers.token_performer import TokenPerformer
from vitfast.layers.tokens_to_token import SoftSplit, TokenAttention, TokenTransformer
from vitfast.models import DVT, ConViT, DistilledVisionTransformer, T2TViT, VisionTransformer
from vitfast.models.dvt import DVTExit

_WEIGHT_AND_BIAS = ("weight", "bias")
_TRANSFORMER = (
    *(
        "patch_embed",
        "tokens_to_token",
        "join_tokens",
        "add_positions",
        "pos_drop",
        "relation_reuse",
        "norm_pre",
        "blocks",
    ),
    *("norm", "attn_pool", "fc_norm", "pre_logits", "head", "fc_norm_dist", "head_dist"),
)


def lower_model(part: Part) -> ModelSpec:
    """Lowers a ViT, DeiT, ConViT, T2T-ViT or DVT of vitfast.

    Raises:
        NotRecognised: it is none of them, or something outside its blocks was changed.
    """
    if not isinstance(part.module, DVT):
        classes = (VisionTransformer, DistilledVisionTransformer, ConViT, T2TViT)
        return _transformer(part, part.module, *classes)
    model = part.expect(DVT, children=("exits",))
    part["exits"].expect(nn.ModuleList, children=part["exits"].module._modules)
    exits = tuple(_transformer(stage, model, DVTExit) for stage in part["exits"].children())
    return CascadeSpec(exits, model.fields.feature_reuse, model.fields.relation_reuse)


def _transformer(part: Part, whole: Any, *classes: type[nn.Module]) -> TransformerSpec:
    """Lowers a model, or an exit of the DVT ``whole``."""
    model = part.expect(*classes, children=_TRANSFORMER, tensors=("cls_token", "reg_token", "pos_embed", "dist_token"))
    fields = whole.fields
    common.passes_in_evaluation(part["pos_drop"])
    part["join_tokens"].expect(layers.JoinTokens)
    part["add_positions"].expect(layers.AddPositions)
    patches = part["tokens_to_token" if isinstance(model, T2TViT) else "patch_embed"]
    prefix = (model.cls_token, getattr(model, "reg_token", None))
    tokens: tuple[Tensor, ...] = tuple(token for token in prefix if token is not None)
    pooling: Pooling = "mean" if "mean" in getattr(fields, "pooling", "token") else getattr(fields, "pooling", "token")
    norm, head = common.optional_norm(part["fc_norm"]), common.head_layers(part["pre_logits"], part["head"])
    index = getattr(fields, "first_pooled_token", 0)
    readouts = [ReadoutSpec(pooling, index, norm, head, _map_pool(part["attn_pool"]))]
    if getattr(fields, "distillation_token", "none") == "after_class":
        tokens = (model.cls_token, model.dist_token)
        norm = common.optional_norm(part["fc_norm_dist"])
        readouts.append(ReadoutSpec("token", 1, norm, common.head_layers(part["head_dist"])))
    is_convit = isinstance(model, ConViT)
    rotary = _rotary(fields)
    lower_blocks = common.all_blocks if rotary else common.blocks
    return TransformerSpec(
        EmbeddingSpec(
            _patch_embedding(patches, whole),
            () if is_convit else tokens,
            model.pos_embed,
            common.optional_norm(part["norm_pre"]),
        ),
        lower_blocks(part["blocks"], _block),
        common.optional_norm(part["norm"]),
        tuple(readouts),
        takes_mean=len(readouts) > 1,
        rotary=rotary,
        late_prefix=tokens if is_convit else (),
        late_index=fields.local_up_to_layer if is_convit else 0,
        relation_reuse=_relation_reuse(part["relation_reuse"]),
    )


def lower_block(part: Part) -> BlockSpec:
    """Lowers ``Block`` and ``ReuseBlock`` apart from their model.

    Raises:
        NotRecognised: it is something else, any part of it was changed, or the model calls it with rotary tables.
    """
    if getattr(part.module, "is_rotary", False):
        raise NotRecognised(part.name, "is called with rotary tables")
    return _block(part)


def _rotary(fields: Any) -> tuple[RotarySpec, ...]:
    scheme = ROTARY_SCHEMES.get(getattr(fields, "rotary", "none"))
    if scheme is None:
        return ()
    frequencies = scheme.frequencies(fields.embed_dim // fields.num_heads)
    return (RotarySpec(frequencies, scheme.coordinates, scheme.is_interleaved, reference=scheme.reference),)


def _block(part: Part) -> BlockSpec:
    children = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2", "drop_path", "feature_reuse", "add")
    part.expect(layers.Block, layers.ReuseBlock, children=children)
    common.passes_in_evaluation(part["drop_path"])
    part["add"].expect(layers.ResidualAdd)
    return BlockSpec(
        part.name,
        common.norm(part["norm1"]),
        _attention(part["attn"]),
        common.norm(part["norm2"]),
        _mlp(part["mlp"]),
        common.layer_scale(part["ls1"], layers.LayerScale, "gamma"),
        common.layer_scale(part["ls2"], layers.LayerScale, "gamma"),
        feature_reuse=_feature_reuse(part["feature_reuse"]),
    )


def _attention(part: Part) -> AttentionSpec:
    """Lowers ``Attention`` and ConViT's ``GatedPositionalAttention``."""
    gated = norm = None
    if isinstance(part.module, layers.GatedPositionalAttention):
        children = ("qk", "v", "proj", "pos_proj", "proj_drop")
        module = part.expect(layers.GatedPositionalAttention, children=children, tensors=("gating_param",))
        position = part["pos_proj"].expect(nn.Linear, tensors=_WEIGHT_AND_BIAS)
        gated = (position.weight, position.bias, module.gating_param)
        qkv = common.linear(part["qk"], part["v"])
    else:
        names, biases = ("qkv", "norm", "proj", "proj_drop"), ("q_bias", "v_bias")
        module = part.expect(layers.Attention, RelationAttention, children=names, tensors=biases)
        qkv, norm = common.linear(part["qkv"]), common.optional_norm(part["norm"])
        if module.q_bias is not None:
            qkv = replace(qkv, biases=(module.q_bias, torch.zeros_like(module.q_bias), module.v_bias))
    common.passes_in_evaluation(part["proj_drop"])
    head_dim = qkv.out_features // 3 // module.num_heads
    proj = common.linear(part["proj"])
    return AttentionSpec(qkv, module.num_heads, head_dim, head_dim**-0.5, proj, norm=norm, gated=gated)


def _mlp(part: Part) -> MlpSpec:
    """Lowers ``Mlp`` and ``GatedMlp``."""
    module = part.expect(layers.Mlp, layers.GatedMlp, children=("fc1", "norm", "fc2", "drop"))
    common.passes_in_evaluation(part["drop"])
    fc1, fc2 = common.linear(part["fc1"]), common.linear(part["fc2"])
    if isinstance(module, layers.GatedMlp):
        return MlpSpec(fc1, "silu", fc2, gate="first", norm=common.optional_norm(part["norm"]))
    return MlpSpec(fc1, "gelu_quick" if module.approximate == "quick" else common.gelu(module.approximate), fc2)


def _map_pool(part: Part) -> MapPoolSpec | None:
    if part.module is None:
        return None
    module = part.expect(layers.AttentionPool, children=("q", "kv", "proj", "norm", "mlp", "add"), tensors=("latent",))
    part["add"].expect(layers.ResidualAdd)
    q, kv, proj = (common.linear(part[name]) for name in ("q", "kv", "proj"))
    scale = (q.out_features // module.num_heads) ** -0.5
    norm, mlp = common.norm(part["norm"]), _mlp(part["mlp"])
    return MapPoolSpec(module.latent, q, kv, module.num_heads, scale, proj, norm, mlp)


def _relation_reuse(part: Part) -> ReuseSpec | None:
    if part.module is None:
        return None
    part.expect(layers.RelationReuse, children=("mlp", "upsample"))
    part["mlp"].expect(nn.Sequential, children="012")
    first, act, second = part["mlp"].children()
    fc1, fc2 = (common.patches_of_convolution(conv, (1, 1)).linear for conv in (first, second))
    return ReuseSpec(None, MlpSpec(fc1, common.activation(act), fc2), _upsample(part["upsample"]))


def _feature_reuse(part: Part) -> ReuseSpec | None:
    if part.module is None:
        return None
    part.expect(layers.FeatureReuse, children=("norm", "mlp", "upsample", "result"))
    part["result"].expect(layers.StoredFeatures)
    return ReuseSpec(common.norm(part["norm"]), _mlp(part["mlp"]), _upsample(part["upsample"]))


def _upsample(part: Part) -> Any:
    return part.expect(layers.GridUpsample, tensors=("matrix",)).matrix


def _patch_embedding(part: Part, model: Any) -> PatchesSpec | TokensToTokenSpec | ConvStemSpec:
    size = (model.img_size, model.img_size)
    if isinstance(part.module, layers.ConvStem):
        return ConvStemSpec(_conv_layers(part), size, model.in_chans)
    if isinstance(part.module, layers.TokensToToken):
        names, mixers = ("soft_split0", "soft_split1", "soft_split2"), ("attention1", "attention2")
        part.expect(layers.TokensToToken, children=(*names, *mixers, "project"))
        splits = [part[name].expect(SoftSplit) for name in names]
        return TokensToTokenSpec(
            tuple(SplitSpec(split.kernel_size, split.stride, split.padding) for split in splits),
            tuple(_mixer(part[name]) for name in mixers),
            common.linear(part["project"]),
            size,
            model.in_chans,
        )
    module = part.expect(layers.PatchEmbed, layers.PaddedPatchEmbed, children=("proj",))
    proj = part["proj"].expect(nn.Conv2d, nn.Linear, tensors=_WEIGHT_AND_BIAS)
    padding = getattr(module, "padding", (0, 0, 0, 0))
    return PatchesSpec(
        LinearSpec((proj.weight,), (proj.bias,), precision_of(part["proj"])),
        (module.img_size - padding[2] - padding[3], module.img_size - padding[0] - padding[1]),
        (module.patch_size, module.patch_size),
        module.in_chans,
        module.patch_order,
        padding,
    )


def _conv_layers(part: Part) -> nn.Sequential:
    """Copies the convolutions that stand for a patch embedding; folds BatchNorm into them in float64."""
    part.expect(layers.ConvStem, children=part.module._modules)
    found: list[nn.Module] = []
    for child in part.children():
        if isinstance(child.module, nn.BatchNorm2d):
            statistics = ("running_mean", "running_var", "num_batches_tracked")
            norm = child.expect(nn.BatchNorm2d, tensors=(*_WEIGHT_AND_BIAS, *statistics))
            conv: Any = found[-1]
            found[-1] = fuse_conv_bn_eval(conv.double(), copy.deepcopy(norm).eval().double()).float()
        elif isinstance(child.module, nn.Conv2d):
            conv = child.expect(nn.Conv2d, tensors=_WEIGHT_AND_BIAS)
            if precision_of(child) is not None or conv.groups != 1 or conv.dilation != (1, 1):
                raise NotRecognised(child.name, "is a quantized, grouped or dilated convolution")
            found.append(copy.deepcopy(conv).eval())
        else:
            child.expect(nn.ReLU)
            found.append(nn.ReLU())
    return nn.Sequential(*found).requires_grad_(False)


def _mixer(part: Part) -> TokenMixerSpec:
    part["add"].expect(layers.ResidualAdd)
    norms = common.norm(part["norm1"]), common.norm(part["norm2"])
    mlp = part["mlp"]
    if isinstance(part.module, TokenTransformer):
        part.expect(TokenTransformer, children=("norm1", "attn", "norm2", "mlp", "add"))
        attn = part["attn"]
        scale, projection = attn.expect(TokenAttention, children=("qkv", "proj")).scale, None
        linear, proj, described = common.linear(attn["qkv"]), common.linear(attn["proj"]), _mlp(mlp)
    else:
        children = ("norm1", "kqv", "proj", "drop", "norm2", "mlp", "add")
        scale, projection = 1.0, part.expect(TokenPerformer, children=children, tensors=("w",)).w
        mlp.expect(nn.Sequential, children="0123")
        fc1, act, fc2, drop = mlp.children()
        common.passes_in_evaluation(part["drop"], drop)
        linear, proj, described = common.linear(part["kqv"]), common.linear(part["proj"]), common.mlp(fc1, act, fc2)
    return TokenMixerSpec(norms[0], linear, projection, scale, proj, norms[1], described)
