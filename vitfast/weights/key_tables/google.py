"""Google's Vision Transformers, saved by JAX as ``.npz`` (github.com/google-research/vision_transformer).

The released files number the layers of a block consecutively (``LayerNorm_0``, ``MultiHeadDotProductAttention_1``,
``LayerNorm_2``, ``MlpBlock_3``); files saved with Flax's linen API number each kind of layer separately.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


def _dense(pattern: str, key: str, transform: Transform = transposed) -> tuple[Rule, ...]:
    return Rule(f"{pattern}/kernel", f"{key}.weight", transform), Rule(f"{pattern}/bias", f"{key}.bias")


def _norm(pattern: str, key: str, transform: Transform = unchanged) -> tuple[Rule, ...]:
    return Rule(f"{pattern}/scale", f"{key}.weight", transform), Rule(f"{pattern}/bias", f"{key}.bias", transform)


def _qkv(part: int, name: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{_ATTENTION}{name}/kernel", r"blocks.\1.attn.qkv.weight", into_heads, part, parts=3),
        Rule(f"{_ATTENTION}{name}/bias", r"blocks.\1.attn.qkv.bias", heads_bias, part, parts=3),
    )


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
        *_qkv(0, "query"),
        *_qkv(1, "key"),
        *_qkv(2, "value"),
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

# Google's name of a ResNet unit's layer -> vitfast's
UNIT_CONVOLUTIONS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "conv_proj": "downsample.conv"}
UNIT_NORMS = {"gn1": "norm1", "gn2": "norm2", "gn3": "norm3", "gn_proj": "downsample.norm"}


def unit_key(layer: str) -> Callable[[str], str]:
    """Returns a function from the key of a ResNet unit's layer to vitfast's key.

    Google's keys are ``block2/unit1/…``, ViT-pytorch's ``….block2.unit1.…``; both count from 1.

    Args:
        layer: vitfast's key below the unit's.
    """

    def key(file_key: str) -> str:
        stage, block = (int(number) - 1 for number in re.findall(r"(?:block|unit)(\d{1,3})\b", file_key)[:2])
        return f"{BACKBONE}stages.{stage}.blocks.{block}.{layer}"

    return key


_UNIT = r"block\d{1,3}/unit\d{1,3}/"
_UNIT_RULES = (
    *(Rule(f"{_UNIT}{conv}/kernel", unit_key(f"{ours}.weight"), from_hwio) for conv, ours in UNIT_CONVOLUTIONS.items()),
    # GroupNorm parameters are stored as [1, 1, 1, C]
    *(Rule(f"{_UNIT}{norm}/scale", unit_key(f"{ours}.weight"), Tensor.flatten) for norm, ours in UNIT_NORMS.items()),
    *(Rule(f"{_UNIT}{norm}/bias", unit_key(f"{ours}.bias"), Tensor.flatten) for norm, ours in UNIT_NORMS.items()),
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
