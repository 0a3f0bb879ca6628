"""torchvision's ``VisionTransformer``; imported only where torchvision is already."""

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
from vitfast.inference.lowering import layers
from vitfast.inference.lowering.module_checks import expect
from vitfast.inference.lowering.not_recognised import NotRecognised
from vitfast.inference.lowering.quantized import precision_of
from vitfast.inference.lowering.vitfast_parts import block_or_own


def describe(model: nn.Module) -> TransformerSpec:
    """Describes torchvision's ``VisionTransformer``.

    Raises:
        NotRecognised: it is something else, or something outside its blocks was changed.
    """
    checked = expect(model, "", VisionTransformer, children=("conv_proj", "encoder", "heads"), tensors=("class_token",))
    encoder = expect(
        checked.encoder, "encoder", Encoder, children=("dropout", "layers", "ln"), tensors=("pos_embedding",)
    )
    layers.passes_in_evaluation("encoder.dropout", encoder.dropout)
    expect(encoder.layers, "encoder.layers", nn.Sequential, children=list(encoder.layers._modules))
    size = (checked.image_size, checked.image_size)
    patches = layers.patches_of_convolution("conv_proj", checked.conv_proj, size)
    named = encoder.layers.named_children()
    return TransformerSpec(
        EmbeddingSpec(patches, (checked.class_token,), encoder.pos_embedding),
        tuple(block_or_own(f"encoder.layers.{key}", child, block) for key, child in named),
        layers.norm("encoder.ln", encoder.ln),
        (ReadoutSpec("token", 0, None, _heads(checked.heads)),),
    )


def block(name: str, module: nn.Module) -> BlockSpec:
    """Describes torchvision's ``EncoderBlock``."""
    checked = expect(module, name, EncoderBlock, children=("ln_1", "self_attention", "dropout", "ln_2", "mlp"))
    layers.passes_in_evaluation(f"{name}.dropout", checked.dropout)
    return BlockSpec(
        name,
        layers.norm(f"{name}.ln_1", checked.ln_1),
        _attention(f"{name}.self_attention", checked.self_attention),
        layers.norm(f"{name}.ln_2", checked.ln_2),
        _mlp(f"{name}.mlp", checked.mlp),
    )


def _attention(name: str, module: nn.Module) -> AttentionSpec:
    tensors = ("in_proj_weight", "in_proj_bias")
    checked = expect(module, name, nn.MultiheadAttention, children=("out_proj",), tensors=tensors)
    if checked.in_proj_weight is None or checked.bias_k is not None or checked.add_zero_attn or not checked.batch_first:
        raise NotRecognised(name, "is no plain self-attention")
    qkv = LinearSpec((checked.in_proj_weight,), (checked.in_proj_bias,), precision_of(checked, name))
    proj = layers.linear(f"{name}.out_proj", checked.out_proj)
    return AttentionSpec(qkv, checked.num_heads, checked.head_dim, checked.head_dim**-0.5, proj)


def _mlp(name: str, module: nn.Module) -> MlpSpec:
    checked: Any = expect(module, name, MLPBlock, children="01234")
    fc1, act, drop1, fc2, drop2 = checked
    for index, drop in ((2, drop1), (4, drop2)):
        layers.passes_in_evaluation(f"{name}.{index}", drop)
    return layers.mlp(name, fc1, act, fc2)


def _heads(module: nn.Module) -> tuple[tuple[LinearSpec, Activation], ...]:
    """Describes ``heads``: a linear layer, before which a hidden one may stand; or what users put in their place."""
    if type(module) is nn.Identity:
        return ()
    if type(module) is nn.Linear:
        return ((layers.linear("heads", module), "none"),)
    expect(module, "heads", nn.Sequential, children=list(module._modules))
    heads: list[tuple[LinearSpec, Activation]] = []
    for key, child in module.named_children():
        name = f"heads.{key}"
        if isinstance(child, nn.Linear):
            heads.append((layers.linear(name, child), "none"))
        elif type(child) in (nn.Identity, nn.Dropout):
            layers.passes_in_evaluation(name, child)
        elif heads and heads[-1][1] == "none":
            heads[-1] = (heads[-1][0], layers.activation(name, child))
        else:
            raise NotRecognised(name, f"is a {type(child).__name__} where a linear layer is expected")
    return tuple(heads)
