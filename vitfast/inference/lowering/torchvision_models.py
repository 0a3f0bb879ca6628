"""Lowering of torchvision's ``VisionTransformer``; imported only if torchvision is imported already."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.vision_transformer import Encoder, EncoderBlock, MLPBlock, VisionTransformer

from vitfast.inference.ir import (
    Activation,
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    LinearSpec,
    MlpSpec,
    ReadoutSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, expect, precision_of


def lower_model(model: nn.Module) -> TransformerSpec:
    """Lowers torchvision's ``VisionTransformer``.

    Raises:
        NotRecognised: it is something else, or something outside its blocks was changed.
    """
    checked = expect(model, "", VisionTransformer, children=("conv_proj", "encoder", "heads"), tensors=("class_token",))
    encoder = expect(
        checked.encoder, "encoder", Encoder, children=("dropout", "layers", "ln"), tensors=("pos_embedding",)
    )
    common.passes_in_evaluation("encoder.dropout", encoder.dropout)
    expect(encoder.layers, "encoder.layers", nn.Sequential, children=common.child_names(encoder.layers))
    size = (checked.image_size, checked.image_size)
    patches = common.patches_of_convolution("conv_proj", checked.conv_proj, size)
    return TransformerSpec(
        EmbeddingSpec(patches, (checked.class_token,), encoder.pos_embedding),
        common.blocks("encoder.layers", encoder.layers, lower_block),
        common.norm("encoder.ln", encoder.ln),
        (ReadoutSpec("token", 0, None, _heads(checked.heads)),),
    )


def lower_block(name: str, module: nn.Module) -> BlockSpec:
    """Lowers torchvision's ``EncoderBlock``."""
    checked = expect(module, name, EncoderBlock, children=("ln_1", "self_attention", "dropout", "ln_2", "mlp"))
    common.passes_in_evaluation(f"{name}.dropout", checked.dropout)
    return BlockSpec(
        name,
        common.norm(f"{name}.ln_1", checked.ln_1),
        _attention(f"{name}.self_attention", checked.self_attention),
        common.norm(f"{name}.ln_2", checked.ln_2),
        _mlp(f"{name}.mlp", checked.mlp),
    )


def _attention(name: str, module: nn.Module) -> AttentionSpec:
    tensors = ("in_proj_weight", "in_proj_bias")
    checked = expect(module, name, nn.MultiheadAttention, children=("out_proj",), tensors=tensors)
    if checked.in_proj_weight is None or checked.bias_k is not None or checked.add_zero_attn or not checked.batch_first:
        raise NotRecognised(name, "is no plain self-attention")
    qkv = LinearSpec((checked.in_proj_weight,), (checked.in_proj_bias,), precision_of(checked, name))
    proj = common.linear(f"{name}.out_proj", checked.out_proj)
    return AttentionSpec(qkv, checked.num_heads, checked.head_dim, checked.head_dim**-0.5, proj)


def _mlp(name: str, module: nn.Module) -> MlpSpec:
    checked: Any = expect(module, name, MLPBlock, children="01234")
    fc1, act, drop1, fc2, drop2 = checked
    for index, drop in ((2, drop1), (4, drop2)):
        common.passes_in_evaluation(f"{name}.{index}", drop)
    return common.mlp(name, fc1, act, fc2)


def _heads(module: nn.Module) -> tuple[tuple[LinearSpec, Activation], ...]:
    """Lowers ``heads``: a linear layer, before which a hidden one may stand; or what users put in their place."""
    if type(module) is nn.Identity:
        return ()
    if type(module) is nn.Linear:
        return ((common.linear("heads", module), "none"),)
    expect(module, "heads", nn.Sequential, children=common.child_names(module))
    heads: list[tuple[LinearSpec, Activation]] = []
    for key, child in module.named_children():
        name = f"heads.{key}"
        if isinstance(child, nn.Linear):
            heads.append((common.linear(name, child), "none"))
        elif type(child) in (nn.Identity, nn.Dropout):
            common.passes_in_evaluation(name, child)
        elif heads and heads[-1][1] == "none":
            heads[-1] = (heads[-1][0], common.activation(name, child))
        else:
            raise NotRecognised(name, f"is a {type(child).__name__} where a linear layer is expected")
    return tuple(heads)
