"""vitfast's own layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from vitfast import layers as own
from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    ConvSpec,
    ConvStemSpec,
    FallbackSpec,
    FeatureReuseSpec,
    GatedPositionsSpec,
    LinearSpec,
    MlpSpec,
    PatchesSpec,
    SplitSpec,
    TokenMixerSpec,
    TokensToTokenSpec,
)
from vitfast.inference.lowering import layers
from vitfast.inference.lowering.module_checks import expect
from vitfast.inference.lowering.not_recognised import NotRecognised
from vitfast.inference.lowering.quantized import precision_of
from vitfast.layers.relation_reuse import RelationAttention
from vitfast.layers.token_performer import TokenPerformer
from vitfast.layers.token_transformer import TokenAttention, TokenTransformer
from vitfast.layers.tokens_to_token import SoftSplit

_MLP = ("fc1", "fc2", "drop")
_ATTENTION = ("qkv", "proj", "proj_drop")


def patches(name: str, module: nn.Module) -> PatchesSpec:
    """Describes ``PatchEmbed`` and ``PaddedPatchEmbed``."""
    checked = expect(module, name, own.PatchEmbed, own.PaddedPatchEmbed, children=("proj",))
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


def mlp(name: str, module: nn.Module) -> MlpSpec:
    """Describes ``Mlp``."""
    checked = expect(module, name, own.Mlp, children=_MLP)
    layers.passes_in_evaluation(f"{name}.drop", checked.drop)
    fc1, fc2 = layers.linear(f"{name}.fc1", checked.fc1), layers.linear(f"{name}.fc2", checked.fc2)
    return MlpSpec(fc1, "gelu" if checked.approximate == "none" else "gelu_tanh", fc2)


def attention(name: str, module: nn.Module) -> AttentionSpec:
    """Describes ``Attention`` and ConViT's ``GatedPositionalAttention``."""
    if isinstance(module, own.GatedPositionalAttention):
        return _gated_attention(name, module)
    checked = expect(module, name, own.Attention, RelationAttention, children=_ATTENTION)
    return _attention(name, checked, layers.linear(f"{name}.qkv", checked.qkv))


def block(name: str, module: nn.Module) -> BlockSpec:
    """Describes ``Block`` and ``ReuseBlock``."""
    children = ("norm1", "attn", "norm2", "mlp", "drop_path", "feature_reuse", "add")
    checked = expect(module, name, own.Block, own.ReuseBlock, children=children)
    layers.passes_in_evaluation(f"{name}.drop_path", checked.drop_path)
    expect(checked.add, f"{name}.add", own.ResidualAdd)
    reuse = getattr(checked, "feature_reuse", None)
    return BlockSpec(
        name,
        layers.norm(f"{name}.norm1", checked.norm1),
        attention(f"{name}.attn", checked.attn),
        layers.norm(f"{name}.norm2", checked.norm2),
        mlp(f"{name}.mlp", checked.mlp),
        feature_reuse=None if reuse is None else _feature_reuse(f"{name}.feature_reuse", reuse),
    )


def blocks(name: str, module: nn.Module) -> tuple[BlockSpec | FallbackSpec, ...]:
    """Describes a sequence of blocks; one that is not recognised keeps its own forward."""
    return tuple(block_or_own(f"{name}.{key}", child, block) for key, child in module.named_children())


def block_or_own(name: str, module: nn.Module, describe: Any) -> BlockSpec | FallbackSpec:
    """Describes a block, or says why it keeps its own forward."""
    try:
        described: BlockSpec = describe(name, module)
    except NotRecognised as reason:
        why = reason.why if reason.name == name else f"{reason.name.removeprefix(name + '.')} {reason.why}"
        return FallbackSpec(name, module, why)
    return described


def tokens_to_token(name: str, module: nn.Module, img_size: int, in_chans: int) -> TokensToTokenSpec:
    """Describes the tokens-to-token module."""
    steps = ("soft_split0", "attention1", "soft_split1", "attention2", "soft_split2", "project")
    checked = expect(module, name, own.TokensToToken, children=steps)
    first, second, third = (_split(f"{name}.soft_split{i}", getattr(checked, f"soft_split{i}")) for i in range(3))
    mixers = (_mixer(f"{name}.attention1", checked.attention1), _mixer(f"{name}.attention2", checked.attention2))
    project = layers.linear(f"{name}.project", checked.project)
    return TokensToTokenSpec((first, second, third), mixers, project, (img_size, img_size), in_chans)


def conv_stem(name: str, module: nn.Module, img_size: int, in_chans: int) -> ConvStemSpec:
    """Describes the convolutions that stand for a patch embedding."""
    expect(module, name, own.ConvStem, children=list(module._modules))
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
    layers.passes_in_evaluation(f"{name}.proj_drop", checked.proj_drop)
    head_dim = qkv.out_features // 3 // checked.num_heads
    proj = layers.linear(f"{name}.proj", checked.proj)
    return AttentionSpec(qkv, checked.num_heads, head_dim, head_dim**-0.5, proj, gated=gated)


def _gated_attention(name: str, module: nn.Module) -> AttentionSpec:
    children = ("qk", "v", "proj", "pos_proj", "proj_drop")
    checked = expect(module, name, own.GatedPositionalAttention, children=children, tensors=("gating_param",))
    qkv = layers.linear(f"{name}.qk", checked.qk, checked.v)
    position = checked.pos_proj
    expect(position, f"{name}.pos_proj", nn.Linear, tensors=("weight", "bias"))
    return _attention(name, checked, qkv, GatedPositionsSpec(position.weight, position.bias, checked.gating_param))


def _feature_reuse(name: str, module: nn.Module) -> FeatureReuseSpec:
    checked = expect(module, name, own.FeatureReuse, children=("norm", "mlp", "upsample", "result"))
    expect(checked.result, f"{name}.result", own.StoredFeatures)
    upsample = expect(checked.upsample, f"{name}.upsample", own.GridUpsample, tensors=("matrix",))
    return FeatureReuseSpec(layers.norm(f"{name}.norm", checked.norm), mlp(f"{name}.mlp", checked.mlp), upsample.matrix)


def _split(name: str, module: nn.Module) -> SplitSpec:
    checked = expect(module, name, SoftSplit)
    return SplitSpec(checked.patch_size, checked.stride, checked.padding)


def _mixer(name: str, module: nn.Module) -> TokenMixerSpec:
    expect(getattr(module, "add", None), f"{name}.add", own.ResidualAdd)
    norms = {key: layers.norm(f"{name}.{key}", getattr(module, key)) for key in ("norm1", "norm2")}
    if isinstance(module, TokenTransformer):
        expect(module, name, TokenTransformer, children=("norm1", "attn", "norm2", "mlp", "add"))
        attn = expect(module.attn, f"{name}.attn", TokenAttention, children=("qkv", "proj"))
        qkv, proj = layers.linear(f"{name}.attn.qkv", attn.qkv), layers.linear(f"{name}.attn.proj", attn.proj)
        described = mlp(f"{name}.mlp", module.mlp)
        return TokenMixerSpec(norms["norm1"], qkv, None, attn.scale, proj, norms["norm2"], described)
    children = ("norm1", "kqv", "proj", "drop", "norm2", "mlp", "add")
    checked = expect(module, name, TokenPerformer, children=children, tensors=("w",))
    layers.passes_in_evaluation(f"{name}.drop", checked.drop)
    expect(checked.mlp, f"{name}.mlp", nn.Sequential, children=("0", "1", "2", "3"))
    fc1, act, fc2, drop = checked.mlp
    layers.passes_in_evaluation(f"{name}.mlp.3", drop)
    kqv, proj = layers.linear(f"{name}.kqv", checked.kqv), layers.linear(f"{name}.proj", checked.proj)
    described = layers.mlp(f"{name}.mlp", fc1, act, fc2)
    return TokenMixerSpec(norms["norm1"], kqv, checked.w, 1.0, proj, norms["norm2"], described)
