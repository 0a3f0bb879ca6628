"""vitfast's own models."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitfast.inference.ir import (
    Activation,
    CascadeSpec,
    ConvStemSpec,
    EmbeddingSpec,
    ExitSpec,
    LinearSpec,
    ModelSpec,
    PatchesSpec,
    ReadoutSpec,
    RelationReuseSpec,
    TokensToTokenSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import layers, vitfast_parts
from vitfast.inference.lowering.module_checks import expect
from vitfast.layers import AddPositions, ConvStem, GridUpsample, JoinTokens, PatchEmbed
from vitfast.layers import RelationReuse as RelationReuseLayer
from vitfast.models import DVT, ConViT, DistilledVisionTransformer, T2TViT, VisionTransformer
from vitfast.models.dvt_exit import DVTExit

_TOKENS = ("cls_token", "pos_embed", "dist_token")
_STORED = ("join_tokens", "add_positions")
_DISTILLED = ("fc_norm_dist", "head_dist")
_VIT = (*_STORED, "patch_embed", "pos_drop", "blocks", "norm", "fc_norm", "pre_logits", "head", *_DISTILLED)


def describe(model: nn.Module) -> ModelSpec:
    """Describes a ViT, DeiT, ConViT, T2T-ViT or DVT of vitfast.

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
    layers.passes_in_evaluation("pos_drop", checked.pos_drop)
    _expect_stored("", checked)
    expect(checked.blocks, "blocks", nn.Sequential, children=_numbers(checked.blocks))
    is_convit = isinstance(checked, ConViT)
    is_distilled = fields.distillation_token == "after_class"
    tokens = (checked.cls_token, checked.dist_token) if is_distilled else (checked.cls_token,)
    readouts = [_vit_readout(checked, fields)]
    if is_distilled:
        fc_norm = layers.optional_norm("fc_norm_dist", checked.fc_norm_dist)
        readouts.append(ReadoutSpec("token", 1, fc_norm, head_layers("head_dist", checked.head_dist)))
    return TransformerSpec(
        EmbeddingSpec(
            vitfast_parts.patches("patch_embed", checked.patch_embed), () if is_convit else tokens, checked.pos_embed
        ),
        vitfast_parts.blocks("blocks", checked.blocks),
        layers.optional_norm("norm", checked.norm),
        tuple(readouts),
        "mean" if is_distilled else "one",
        late_prefix=tokens if is_convit else (),
        late_index=fields.local_up_to_layer if is_convit else 0,
    )


def _vit_readout(model: Any, fields: Any) -> ReadoutSpec:
    head: list[tuple[LinearSpec, Activation]] = []
    if type(model.pre_logits) is not nn.Identity:
        expect(model.pre_logits, "pre_logits", nn.Sequential, children=("fc", "act"))
        act = layers.activation("pre_logits.act", model.pre_logits.act)
        head.append((layers.linear("pre_logits.fc", model.pre_logits.fc), act))
    head += head_layers("head", model.head)
    fc_norm = layers.optional_norm("fc_norm", model.fc_norm)
    return ReadoutSpec("mean" if fields.pooling == "mean" else "token", 0, fc_norm, tuple(head))


def head_layers(name: str, module: nn.Module) -> tuple[tuple[LinearSpec, Activation], ...]:
    """Describes a linear head, or the absence of one."""
    if type(module) is nn.Identity:
        return ()
    return ((layers.linear(name, module), "none"),)


def _t2t_vit(model: T2TViT) -> TransformerSpec:
    children = (*_STORED, "tokens_to_token", "pos_drop", "blocks", "norm", "head")
    checked = expect(model, "", T2TViT, children=children, tensors=_TOKENS)
    layers.passes_in_evaluation("pos_drop", checked.pos_drop)
    _expect_stored("", checked)
    expect(checked.blocks, "blocks", nn.Sequential, children=_numbers(checked.blocks))
    patches = vitfast_parts.tokens_to_token(
        "tokens_to_token", checked.tokens_to_token, checked.img_size, checked.in_chans
    )
    return TransformerSpec(
        EmbeddingSpec(patches, (checked.cls_token,), checked.pos_embed),
        vitfast_parts.blocks("blocks", checked.blocks),
        layers.norm("norm", checked.norm),
        (ReadoutSpec("token", 0, None, head_layers("head", checked.head)),),
    )


def _dvt(model: DVT) -> CascadeSpec:
    checked = expect(model, "", DVT, children=("exits",))
    expect(checked.exits, "exits", nn.ModuleList, children=_numbers(checked.exits))
    exits = tuple(_exit(f"exits.{index}", stage, model) for index, stage in enumerate(checked.exits))
    fields = model.fields
    return CascadeSpec(exits, fields.feature_reuse, fields.relation_reuse, fields.num_classes)


def _exit(name: str, module: nn.Module, model: DVT) -> ExitSpec:
    children = (*_STORED, "patch_embed", "pos_drop", "relation_reuse", "blocks", "norm", "head")
    checked = expect(module, name, DVTExit, children=children, tensors=_TOKENS)
    layers.passes_in_evaluation(f"{name}.pos_drop", checked.pos_drop)
    _expect_stored(f"{name}.", checked)
    expect(checked.blocks, f"{name}.blocks", nn.ModuleList, children=_numbers(checked.blocks))
    embed_name = f"{name}.patch_embed"
    patches: PatchesSpec | TokensToTokenSpec | ConvStemSpec
    if isinstance(checked.patch_embed, PatchEmbed):
        patches = vitfast_parts.patches(embed_name, checked.patch_embed)
    else:
        is_stem = isinstance(checked.patch_embed, ConvStem)
        describe_patches = vitfast_parts.conv_stem if is_stem else vitfast_parts.tokens_to_token
        patches = describe_patches(embed_name, checked.patch_embed, model.img_size, model.in_chans)
    transformer = TransformerSpec(
        EmbeddingSpec(patches, (checked.cls_token,), checked.pos_embed),
        vitfast_parts.blocks(f"{name}.blocks", checked.blocks),
        layers.norm(f"{name}.norm", checked.norm),
        (ReadoutSpec("token", 0, None, head_layers(f"{name}.head", checked.head)),),
    )
    reuse = checked.relation_reuse
    return ExitSpec(transformer, None if reuse is None else _relation_reuse(f"{name}.relation_reuse", reuse))


def _relation_reuse(name: str, module: nn.Module) -> RelationReuseSpec:
    checked = expect(module, name, RelationReuseLayer, children=("mlp", "upsample"))
    expect(checked.mlp, f"{name}.mlp", nn.Sequential, children=("0", "1", "2"))
    upsample = expect(checked.upsample, f"{name}.upsample", GridUpsample, tensors=("matrix",))
    fc1, fc2 = (
        layers.patches_of_convolution(f"{name}.mlp.{index}", checked.mlp[index], (1, 1)).linear for index in (0, 2)
    )
    layers.activation(f"{name}.mlp.1", checked.mlp[1])
    return RelationReuseSpec(name, fc1, fc2, checked.num_layers, upsample.matrix)


def _expect_stored(prefix: str, model: Any) -> None:
    expect(model.join_tokens, f"{prefix}join_tokens", JoinTokens)
    expect(model.add_positions, f"{prefix}add_positions", AddPositions)


def _numbers(module: nn.Module) -> list[str]:
    """The names of the children of a sequence: ``"0"``, ``"1"`` and so on."""
    return [str(index) for index in range(len(module._modules))]
