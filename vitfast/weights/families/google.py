"""Google's Vision Transformers, which JAX saved as ``.npz`` (github.com/google-research/vision_transformer).

The released files number all layers of a block through (``LayerNorm_0``, ``MultiHeadDotProductAttention_1``,
``LayerNorm_2``, ``MlpBlock_3``); what Flax's linen API saves numbers each kind of layer for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitfast.models.hybrid_fields import HybridFields
from vitfast.weights.families.resnet_units import BACKBONE, UNIT_CONVOLUTIONS, UNIT_NORMS, in_unit
from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule, flattened, from_hwio, heads_bias, into_heads, out_of_heads, transposed

_BLOCK = r"Transformer/encoderblock_(\d+)/"
_ATTENTION = _BLOCK + r"MultiHeadDotProductAttention_[01]/"
_MLP = _BLOCK + r"MlpBlock_[03]/"


def _read_fields(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The kernels keep the heads apart: ``[C, H, D]``."""
    for number in (1, 0):
        query = tensors.get(f"Transformer/encoderblock_0/MultiHeadDotProductAttention_{number}/query/kernel")
        if query is not None and query.dim() == 3:
            return {"num_heads": query.shape[1]}
    return {}


GOOGLE = Family(
    name="Google",
    signature=(r"embedding/kernel", _BLOCK + r".+"),
    rules=(
        Rule(r"cls", "cls_token"),
        Rule(r"embedding/kernel", "patch_embed.proj.weight", from_hwio),
        Rule(r"embedding/bias", "patch_embed.proj.bias"),
        Rule(r"Transformer/posembed_input/pos_embedding", "pos_embed"),
        Rule(_BLOCK + r"LayerNorm_0/scale", r"blocks.\1.norm1.weight"),
        Rule(_BLOCK + r"LayerNorm_0/bias", r"blocks.\1.norm1.bias"),
        Rule(_ATTENTION + r"query/kernel", r"blocks.\1.attn.qkv.weight", into_heads, part=0, parts=3),
        Rule(_ATTENTION + r"key/kernel", r"blocks.\1.attn.qkv.weight", into_heads, part=1, parts=3),
        Rule(_ATTENTION + r"value/kernel", r"blocks.\1.attn.qkv.weight", into_heads, part=2, parts=3),
        Rule(_ATTENTION + r"query/bias", r"blocks.\1.attn.qkv.bias", heads_bias, part=0, parts=3),
        Rule(_ATTENTION + r"key/bias", r"blocks.\1.attn.qkv.bias", heads_bias, part=1, parts=3),
        Rule(_ATTENTION + r"value/bias", r"blocks.\1.attn.qkv.bias", heads_bias, part=2, parts=3),
        Rule(_ATTENTION + r"out/kernel", r"blocks.\1.attn.proj.weight", out_of_heads),
        Rule(_ATTENTION + r"out/bias", r"blocks.\1.attn.proj.bias"),
        Rule(_BLOCK + r"LayerNorm_[12]/scale", r"blocks.\1.norm2.weight"),
        Rule(_BLOCK + r"LayerNorm_[12]/bias", r"blocks.\1.norm2.bias"),
        Rule(_MLP + r"Dense_0/kernel", r"blocks.\1.mlp.fc1.weight", transposed),
        Rule(_MLP + r"Dense_0/bias", r"blocks.\1.mlp.fc1.bias"),
        Rule(_MLP + r"Dense_1/kernel", r"blocks.\1.mlp.fc2.weight", transposed),
        Rule(_MLP + r"Dense_1/bias", r"blocks.\1.mlp.fc2.bias"),
        Rule(r"Transformer/encoder_norm/scale", "norm.weight"),
        Rule(r"Transformer/encoder_norm/bias", "norm.bias"),
        Rule(r"pre_logits/kernel", "pre_logits.fc.weight", transposed),
        Rule(r"pre_logits/bias", "pre_logits.fc.bias"),
        Rule(r"head/kernel", "head.weight", transposed),
        Rule(r"head/bias", "head.bias"),
    ),
    # flax.linen.gelu is the tanh approximation by default, and flax.linen.LayerNorm's epsilon 1e-6
    fields={"layer_norm_eps": 1e-6, "gelu": "tanh", "position_interpolation": "zoom_linear"},
    read_fields=_read_fields,
)

_UNIT = r"block\d{1,3}/unit\d{1,3}/"
_UNIT_RULES = (
    *(Rule(f"{_UNIT}{conv}/kernel", in_unit(f"{ours}.weight"), from_hwio) for conv, ours in UNIT_CONVOLUTIONS.items()),
    # norms are stored as [1, 1, 1, C]
    *(Rule(f"{_UNIT}{norm}/scale", in_unit(f"{ours}.weight"), flattened) for norm, ours in UNIT_NORMS.items()),
    *(Rule(f"{_UNIT}{norm}/bias", in_unit(f"{ours}.bias"), flattened) for norm, ours in UNIT_NORMS.items()),
)


def _stem_rules(stem: str) -> tuple[Rule, ...]:
    return (
        Rule(r"conv_root/kernel", f"{stem}conv.weight", from_hwio),
        Rule(r"gn_root/scale", f"{stem}norm.weight", flattened),
        Rule(r"gn_root/bias", f"{stem}norm.bias", flattened),
    )


GOOGLE_HYBRID = replace(
    GOOGLE,
    name="Google hybrid",
    signature=(*GOOGLE.signature, r"conv_root/kernel", rf"{_UNIT}conv1/kernel"),
    rules=(*GOOGLE.rules, *_stem_rules(f"{BACKBONE}stem."), *_UNIT_RULES),
    fields={
        **GOOGLE.fields,
        "resnet_padding": "same",
        "weight_eps": 1e-5,
        "weight_eps_place": "deviation",
        "group_norm_eps": 1e-6,
        "projection_norm": "group",
    },
    models=HybridFields,
)

# R+ViT-Ti/16, whose ResNet is its stem alone
GOOGLE_STEM_HYBRID = replace(
    GOOGLE_HYBRID,
    signature=(*GOOGLE.signature, r"conv_root/kernel"),
    rules=(*GOOGLE.rules, *_stem_rules(BACKBONE)),
)
