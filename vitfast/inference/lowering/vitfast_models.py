"""Lowering of vitfast's models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from vitfast import layers
from vitfast.inference.ir import (
    Activation,
    AttentionSpec,
    BlockSpec,
    CascadeSpec,
    ConvSpec,
    ConvStemSpec,
    EmbeddingSpec,
    ExitSpec,
    FeatureReuseSpec,
    GatedPositionsSpec,
    LinearSpec,
    MlpSpec,
    ModelSpec,
    PatchesSpec,
    ReadoutSpec,
    RelationReuseSpec,
    SplitSpec,
    TokenMixerSpec,
    TokensToTokenSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, expect, precision_of
from vitfast.layers.relation_reuse import RelationAttention
from vitfast.layers.token_performer import TokenPerformer
from vitfast.layers.token_transformer import TokenAttention, TokenTransformer
from vitfast.layers.tokens_to_token import SoftSplit
from vitfast.models import DVT, ConViT, DistilledVisionTransformer, T2TViT, VisionTransformer
from vitfast.models.dvt import DVTExit

_MLP = ("fc1", "fc2", "drop")
_ATTENTION = ("qkv", "proj", "proj_drop")
_TOKENS = ("cls_token", "pos_embed", "dist_token")
_STORED = ("join_tokens", "add_positions")
_DISTILLED = ("fc_norm_dist", "head_dist")
_VIT = (*_STORED, "patch_embed", "pos_drop", "blocks", "norm", "fc_norm", "pre_logits", "head", *_DISTILLED)


def lower_model(model: nn.Module) -> ModelSpec:
    """Lowers a ViT, DeiT, ConViT, T2T-ViT or DVT of vitfast.

    Raises:
        NotRecognised: it is none of them, or something outside its blocks was changed.
    """
    if isinstance(model, DVT):
        return _dvt(model)
    if isinstance(model, T2TViT):
        return _t2t_vit(model)
    return _vit(model)


def _vit(model: nn.Module) -> TransformerSpec:
    classes = (VisionTransformer, DistilledVisionTransformer, ConViT)
    checked = expect(model, "", *classes, children=_VIT, tensors=_TOKENS)
    fields: Any = checked.fields
    common.passes_in_evaluation("pos_drop", checked.pos_drop)
    _expect_stored("", checked)
    expect(checked.blocks, "blocks", nn.Sequential, children=common.child_names(checked.blocks))
    is_convit = isinstance(checked, ConViT)
    is_distilled = fields.distillation_token == "after_class"
    tokens = (checked.cls_token, checked.dist_token) if is_distilled else (checked.cls_token,)
    readouts = [_vit_readout(checked, fields)]
    if is_distilled:
        fc_norm = common.optional_norm("fc_norm_dist", checked.fc_norm_dist)
        readouts.append(ReadoutSpec("token", 1, fc_norm, common.head_layers("head_dist", checked.head_dist)))
    return TransformerSpec(
        EmbeddingSpec(_patches("patch_embed", checked.patch_embed), () if is_convit else tokens, checked.pos_embed),
        common.blocks("blocks", checked.blocks, lower_block),
        common.optional_norm("norm", checked.norm),
        tuple(readouts),
        "mean" if is_distilled else "one",
        late_prefix=tokens if is_convit else (),
        late_index=fields.local_up_to_layer if is_convit else 0,
    )


def _vit_readout(model: Any, fields: Any) -> ReadoutSpec:
    head: list[tuple[LinearSpec, Activation]] = []
    if type(model.pre_logits) is not nn.Identity:
        expect(model.pre_logits, "pre_logits", nn.Sequential, children=("fc", "act"))
        act = common.activation("pre_logits.act", model.pre_logits.act)
        head.append((common.linear("pre_logits.fc", model.pre_logits.fc), act))
    head += common.head_layers("head", model.head)
    fc_norm = common.optional_norm("fc_norm", model.fc_norm)
    return ReadoutSpec("mean" if fields.pooling == "mean" else "token", 0, fc_norm, tuple(head))


def _t2t_vit(model: T2TViT) -> TransformerSpec:
    children = (*_STORED, "tokens_to_token", "pos_drop", "blocks", "norm", "head")
    checked = expect(model, "", T2TViT, children=children, tensors=_TOKENS)
    common.passes_in_evaluation("pos_drop", checked.pos_drop)
    _expect_stored("", checked)
    expect(checked.blocks, "blocks", nn.Sequential, children=common.child_names(checked.blocks))
    patches = _tokens_to_token("tokens_to_token", checked.tokens_to_token, checked.img_size, checked.in_chans)
    return TransformerSpec(
        EmbeddingSpec(patches, (checked.cls_token,), checked.pos_embed),
        common.blocks("blocks", checked.blocks, lower_block),
        common.norm("norm", checked.norm),
        (ReadoutSpec("token", 0, None, common.head_layers("head", checked.head)),),
    )


def _dvt(model: DVT) -> CascadeSpec:
    checked = expect(model, "", DVT, children=("exits",))
    expect(checked.exits, "exits", nn.ModuleList, children=common.child_names(checked.exits))
    exits = tuple(_exit(f"exits.{index}", stage, model) for index, stage in enumerate(checked.exits))
    return CascadeSpec(exits, model.fields.feature_reuse, model.fields.relation_reuse)


def _exit(name: str, module: nn.Module, model: DVT) -> ExitSpec:
    children = (*_STORED, "patch_embed", "pos_drop", "relation_reuse", "blocks", "norm", "head")
    checked = expect(module, name, DVTExit, children=children, tensors=_TOKENS)
    common.passes_in_evaluation(f"{name}.pos_drop", checked.pos_drop)
    _expect_stored(f"{name}.", checked)
    expect(checked.blocks, f"{name}.blocks", nn.ModuleList, children=common.child_names(checked.blocks))
    embed_name = f"{name}.patch_embed"
    patches: PatchesSpec | TokensToTokenSpec | ConvStemSpec
    if isinstance(checked.patch_embed, layers.PatchEmbed):
        patches = _patches(embed_name, checked.patch_embed)
    else:
        is_stem = isinstance(checked.patch_embed, layers.ConvStem)
        lower_patches = _conv_stem if is_stem else _tokens_to_token
        patches = lower_patches(embed_name, checked.patch_embed, model.img_size, model.in_chans)
    transformer = TransformerSpec(
        EmbeddingSpec(patches, (checked.cls_token,), checked.pos_embed),
        common.blocks(f"{name}.blocks", checked.blocks, lower_block),
        common.norm(f"{name}.norm", checked.norm),
        (ReadoutSpec("token", 0, None, common.head_layers(f"{name}.head", checked.head)),),
    )
    reuse = checked.relation_reuse
    return ExitSpec(transformer, None if reuse is None else _relation_reuse(f"{name}.relation_reuse", reuse))


def _relation_reuse(name: str, module: nn.Module) -> RelationReuseSpec:
    checked = expect(module, name, layers.RelationReuse, children=("mlp", "upsample"))
    expect(checked.mlp, f"{name}.mlp", nn.Sequential, children=("0", "1", "2"))
    upsample = expect(checked.upsample, f"{name}.upsample", layers.GridUpsample, tensors=("matrix",))
    fc1, fc2 = (
        common.patches_of_convolution(f"{name}.mlp.{index}", checked.mlp[index], (1, 1)).linear for index in (0, 2)
    )
    common.activation(f"{name}.mlp.1", checked.mlp[1])
    return RelationReuseSpec(fc1, fc2, checked.num_layers, upsample.matrix)


def _expect_stored(prefix: str, model: Any) -> None:
    expect(model.join_tokens, f"{prefix}join_tokens", layers.JoinTokens)
    expect(model.add_positions, f"{prefix}add_positions", layers.AddPositions)


def _patches(name: str, module: nn.Module) -> PatchesSpec:
    """Lowers ``PatchEmbed`` and ``PaddedPatchEmbed``."""
    checked = expect(module, name, layers.PatchEmbed, layers.PaddedPatchEmbed, children=("proj",))
    proj = checked.proj
    expect(proj, f"{name}.proj", nn.Conv2d, nn.Linear, tensors=("weight", "bias"))
    size, padding = checked.img_size, getattr(checked, "padding", (0, 0, 0, 0))
    height, width = size - padding[2] - padding[3], size - padding[0] - padding[1]
    return PatchesSpec(
        LinearSpec((proj.weight,), (proj.bias,), precision_of(proj, f"{name}.proj")),
        (height, width),
        (checked.patch_size, checked.patch_size),
        checked.in_chans,
        checked.patch_order,
        padding,
    )


def _mlp(name: str, module: nn.Module) -> MlpSpec:
    """Lowers ``Mlp``."""
    checked = expect(module, name, layers.Mlp, children=_MLP)
    common.passes_in_evaluation(f"{name}.drop", checked.drop)
    fc1, fc2 = common.linear(f"{name}.fc1", checked.fc1), common.linear(f"{name}.fc2", checked.fc2)
    return MlpSpec(fc1, common.gelu(checked.approximate), fc2)


def _any_attention(name: str, module: nn.Module) -> AttentionSpec:
    """Lowers ``Attention`` and ConViT's ``GatedPositionalAttention``."""
    if isinstance(module, layers.GatedPositionalAttention):
        return _gated_attention(name, module)
    checked = expect(module, name, layers.Attention, RelationAttention, children=_ATTENTION)
    return _attention(name, checked, common.linear(f"{name}.qkv", checked.qkv))


def lower_block(name: str, module: nn.Module) -> BlockSpec:
    """Lowers ``Block`` and ``ReuseBlock``."""
    children = ("norm1", "attn", "norm2", "mlp", "drop_path", "feature_reuse", "add")
    checked = expect(module, name, layers.Block, layers.ReuseBlock, children=children)
    common.passes_in_evaluation(f"{name}.drop_path", checked.drop_path)
    expect(checked.add, f"{name}.add", layers.ResidualAdd)
    reuse = getattr(checked, "feature_reuse", None)
    return BlockSpec(
        name,
        common.norm(f"{name}.norm1", checked.norm1),
        _any_attention(f"{name}.attn", checked.attn),
        common.norm(f"{name}.norm2", checked.norm2),
        _mlp(f"{name}.mlp", checked.mlp),
        feature_reuse=None if reuse is None else _feature_reuse(f"{name}.feature_reuse", reuse),
    )


def _tokens_to_token(name: str, module: nn.Module, img_size: int, in_chans: int) -> TokensToTokenSpec:
    """Lowers the tokens-to-token module."""
    steps = ("soft_split0", "attention1", "soft_split1", "attention2", "soft_split2", "project")
    checked = expect(module, name, layers.TokensToToken, children=steps)
    first, second, third = (_split(f"{name}.soft_split{i}", getattr(checked, f"soft_split{i}")) for i in range(3))
    mixers = (_mixer(f"{name}.attention1", checked.attention1), _mixer(f"{name}.attention2", checked.attention2))
    project = common.linear(f"{name}.project", checked.project)
    return TokensToTokenSpec((first, second, third), mixers, project, (img_size, img_size), in_chans)


def _conv_stem(name: str, module: nn.Module, img_size: int, in_chans: int) -> ConvStemSpec:
    """Lowers the convolutions that stand for a patch embedding."""
    expect(module, name, layers.ConvStem, children=list(module._modules))
    found: list[ConvSpec] = []
    for key, child in module.named_children():
        at = f"{name}.{key}"
        if isinstance(child, nn.Conv2d):
            conv = expect(child, at, nn.Conv2d, tensors=("weight", "bias"))
            if precision_of(conv, at) is not None or conv.groups != 1 or conv.dilation != (1, 1):
                raise NotRecognised(at, "is a quantized, grouped or dilated convolution")
            found.append(ConvSpec(conv.weight, conv.bias, conv.stride[0], conv.padding[0], None, False))
        elif isinstance(child, nn.BatchNorm2d):
            tensors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            norm = expect(child, at, nn.BatchNorm2d, tensors=tensors)
            statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var, float(norm.eps))
            found[-1] = replace(found[-1], batch_norm=statistics)
        else:
            expect(child, at, nn.ReLU)
            found[-1] = replace(found[-1], relu=True)
    return ConvStemSpec(tuple(found), (img_size, img_size), in_chans)


def _attention(name: str, checked: Any, qkv: LinearSpec, gated: GatedPositionsSpec | None = None) -> AttentionSpec:
    common.passes_in_evaluation(f"{name}.proj_drop", checked.proj_drop)
    head_dim = qkv.out_features // 3 // checked.num_heads
    proj = common.linear(f"{name}.proj", checked.proj)
    return AttentionSpec(qkv, checked.num_heads, head_dim, head_dim**-0.5, proj, gated=gated)


def _gated_attention(name: str, module: nn.Module) -> AttentionSpec:
    children = ("qk", "v", "proj", "pos_proj", "proj_drop")
    checked = expect(module, name, layers.GatedPositionalAttention, children=children, tensors=("gating_param",))
    qkv = common.linear(f"{name}.qk", checked.qk, checked.v)
    position = checked.pos_proj
    expect(position, f"{name}.pos_proj", nn.Linear, tensors=("weight", "bias"))
    return _attention(name, checked, qkv, GatedPositionsSpec(position.weight, position.bias, checked.gating_param))


def _feature_reuse(name: str, module: nn.Module) -> FeatureReuseSpec:
    checked = expect(module, name, layers.FeatureReuse, children=("norm", "mlp", "upsample", "result"))
    expect(checked.result, f"{name}.result", layers.StoredFeatures)
    upsample = expect(checked.upsample, f"{name}.upsample", layers.GridUpsample, tensors=("matrix",))
    return FeatureReuseSpec(
        common.norm(f"{name}.norm", checked.norm), _mlp(f"{name}.mlp", checked.mlp), upsample.matrix
    )


def _split(name: str, module: nn.Module) -> SplitSpec:
    checked = expect(module, name, SoftSplit)
    return SplitSpec(checked.patch_size, checked.stride, checked.padding)


def _mixer(name: str, module: nn.Module) -> TokenMixerSpec:
    expect(getattr(module, "add", None), f"{name}.add", layers.ResidualAdd)
    norms = {key: common.norm(f"{name}.{key}", getattr(module, key)) for key in ("norm1", "norm2")}
    if isinstance(module, TokenTransformer):
        expect(module, name, TokenTransformer, children=("norm1", "attn", "norm2", "mlp", "add"))
        attn = expect(module.attn, f"{name}.attn", TokenAttention, children=("qkv", "proj"))
        qkv, proj = common.linear(f"{name}.attn.qkv", attn.qkv), common.linear(f"{name}.attn.proj", attn.proj)
        described = _mlp(f"{name}.mlp", module.mlp)
        return TokenMixerSpec(norms["norm1"], qkv, None, attn.scale, proj, norms["norm2"], described)
    children = ("norm1", "kqv", "proj", "drop", "norm2", "mlp", "add")
    checked = expect(module, name, TokenPerformer, children=children, tensors=("w",))
    common.passes_in_evaluation(f"{name}.drop", checked.drop)
    expect(checked.mlp, f"{name}.mlp", nn.Sequential, children=("0", "1", "2", "3"))
    fc1, act, fc2, drop = checked.mlp
    common.passes_in_evaluation(f"{name}.mlp.3", drop)
    kqv, proj = common.linear(f"{name}.kqv", checked.kqv), common.linear(f"{name}.proj", checked.proj)
    described = common.mlp(f"{name}.mlp", fc1, act, fc2)
    return TokenMixerSpec(norms["norm1"], kqv, checked.w, 1.0, proj, norms["norm2"], described)
