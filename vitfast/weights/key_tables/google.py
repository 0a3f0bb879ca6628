"""Google's Vision Transformers, saved by JAX as ``.npz`` (github.com/google-research/vision_transformer).

The released files number the layers of a block consecutively (``LayerNorm_0``, ``MultiHeadDotProductAttention_1``,
``LayerNorm_2``, ``MlpBlock_3``); files saved with Flax's linen API number each kind of layer separately.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitfast.models.hybrid import HybridFields
from vitfast.weights.key_tables.key_table import KeyTable, Rule, Transform, unchanged


def transposed(kernel: Tensor) -> Tensor:
    """Flax's Dense kernel ``[in, out]`` to torch's linear weight ``[out, in]``."""
    return kernel.permute(1, 0)


def from_hwio(kernel: Tensor) -> Tensor:
    """Flax's convolution kernel ``[height, width, in, out]`` to torch's ``[out, in, height, width]``."""
    return kernel.permute(3, 2, 0, 1)


def into_heads(kernel: Tensor) -> Tensor:
    """Flax's projection into heads ``[C, H, D]`` to a linear weight ``[H * D, C]``."""
    return kernel.permute(1, 2, 0).flatten(0, 1)


def heads_bias(bias: Tensor) -> Tensor:
    """Flax's bias of a projection into heads ``[H, D]`` to ``[H * D]``."""
    return bias.flatten(0, 1)


def out_of_heads(kernel: Tensor) -> Tensor:
    """Flax's projection out of heads ``[H, D, C]`` to a linear weight ``[C, H * D]``."""
    return kernel.permute(2, 0, 1).flatten(1)


_BLOCK = r"Transformer/encoderblock_(\d+)/"
_ATTENTION = _BLOCK + r"MultiHeadDotProductAttention_[01]/"
_MLP = _BLOCK + r"MlpBlock_[03]/"


def _dense(
    pattern: str, key: str, kernel: Transform = transposed, bias: Transform = unchanged, part: int = 0, parts: int = 1
) -> tuple[Rule, ...]:
    return (
        Rule(f"{pattern}/kernel", f"{key}.weight", kernel, part, parts),
        Rule(f"{pattern}/bias", f"{key}.bias", bias, part, parts),
    )


def _norm(pattern: str, key: str, transform: Transform = unchanged) -> tuple[Rule, ...]:
    return Rule(f"{pattern}/scale", f"{key}.weight", transform), Rule(f"{pattern}/bias", f"{key}.bias", transform)


def _read_fields(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the number of heads, which is a dimension of the kernels ``[C, H, D]``."""
    for number in (1, 0):
        query = tensors.get(f"Transformer/encoderblock_0/MultiHeadDotProductAttention_{number}/query/kernel")
        if query is not None and query.dim() == 3:
            return {"num_heads": query.shape[1]}
    return {}


GOOGLE = KeyTable(
    name="Google",
    signature=(r"embedding/kernel", _BLOCK + r".+"),
    rules=(
        Rule(r"cls", "cls_token"),
        *_dense(r"embedding", "patch_embed.proj", from_hwio),
        Rule(r"Transformer/posembed_input/pos_embedding", "pos_embed"),
        *_norm(_BLOCK + r"LayerNorm_0", r"blocks.\1.norm1"),
        *_dense(_ATTENTION + r"query", r"blocks.\1.attn.qkv", into_heads, heads_bias, part=0, parts=3),
        *_dense(_ATTENTION + r"key", r"blocks.\1.attn.qkv", into_heads, heads_bias, part=1, parts=3),
        *_dense(_ATTENTION + r"value", r"blocks.\1.attn.qkv", into_heads, heads_bias, part=2, parts=3),
        *_dense(_ATTENTION + r"out", r"blocks.\1.attn.proj", out_of_heads),
        *_norm(_BLOCK + r"LayerNorm_[12]", r"blocks.\1.norm2"),
        *_dense(_MLP + r"Dense_0", r"blocks.\1.mlp.fc1"),
        *_dense(_MLP + r"Dense_1", r"blocks.\1.mlp.fc2"),
        *_norm(r"Transformer/encoder_norm", "norm"),
        *_dense(r"pre_logits", "pre_logits.fc"),
        *_dense(r"head", "head"),
    ),
    # flax.linen.gelu is the tanh approximation by default, and flax.linen.LayerNorm's epsilon 1e-6
    fields={"layer_norm_eps": 1e-6, "gelu": "tanh", "position_interpolation": "zoom_linear"},
    read_fields=_read_fields,
)

BACKBONE = "patch_embed.backbone."

# layer of a ResNet unit in Google's files and in ViT-pytorch's -> in vitfast's
_UNIT_LAYERS = {"conv_proj": "downsample.conv", "downsample": "downsample.conv", "gn_proj": "downsample.norm"}


def unit_key(file_key: str) -> str:
    """Converts the key of a ResNet unit's layer to vitfast's.

    Google's keys are ``block2/unit1/gn1/scale``, ViT-pytorch's ``….block2.unit1.gn1.weight``; both count from 1.
    """
    stage, block, layer, kind = re.split(r"[./]", file_key)[-4:]
    layer = _UNIT_LAYERS.get(layer, layer.replace("gn", "norm"))
    kind = "bias" if kind == "bias" else "weight"
    return f"{BACKBONE}stages.{int(stage[5:]) - 1}.blocks.{int(block[4:]) - 1}.{layer}.{kind}"


_UNIT = r"block\d{1,3}/unit\d{1,3}/"
_UNIT_RULES = (
    Rule(_UNIT + r"conv(?:[123]|_proj)/kernel", unit_key, from_hwio),
    Rule(_UNIT + r"gn(?:[123]|_proj)/(?:scale|bias)", unit_key, Tensor.flatten),  # stored as [1, 1, 1, C]
)


def _stem_rules(stem: str) -> tuple[Rule, ...]:
    return (
        Rule(r"conv_root/kernel", f"{stem}conv.weight", from_hwio),
        *_norm(r"gn_root", f"{stem}norm", Tensor.flatten),
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
    fields_type=HybridFields,
)

# R+ViT-Ti/16, whose ResNet is only a stem
GOOGLE_STEM_HYBRID = replace(
    GOOGLE_HYBRID,
    signature=(*GOOGLE.signature, r"conv_root/kernel"),
    rules=(*GOOGLE.rules, *_stem_rules(BACKBONE)),
)

TABLES: tuple[KeyTable, ...] = (GOOGLE_HYBRID, GOOGLE_STEM_HYBRID, GOOGLE)  # a hybrid also has all keys of a ViT
