"""The PyTorch port of Google's models that fine-tunes them on CIFAR (github.com/jeonsworld/ViT-pytorch)."""

from __future__ import annotations

from dataclasses import replace

from vitfast.models.hybrid import HybridFields
from vitfast.weights.key_tables.google import BACKBONE, unit_key
from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine, stacked_affine

_BLOCK = r"transformer\.encoder\.layer\.(\d+)\."

JEONSWORLD = KeyTable(
    name="ViT-pytorch",
    signature=(r"transformer\.embeddings\.patch_embeddings\.weight", _BLOCK + r"attn\.query\.weight"),
    rules=(
        Rule(r"transformer\.embeddings\.cls_token", "cls_token"),
        Rule(r"transformer\.embeddings\.position_embeddings", "pos_embed"),
        *affine(r"transformer\.embeddings\.patch_embeddings", "patch_embed.proj"),
        *affine(_BLOCK + r"attention_norm", r"blocks.\1.norm1"),
        *stacked_affine([_BLOCK + rf"attn\.{part}" for part in ("query", "key", "value")], r"blocks.\1.attn.qkv"),
        *affine(_BLOCK + r"attn\.out", r"blocks.\1.attn.proj"),
        *affine(_BLOCK + r"ffn_norm", r"blocks.\1.norm2"),
        *affine(_BLOCK + r"ffn\.fc([12])", r"blocks.\1.mlp.fc\2"),
        *affine(r"transformer\.encoder\.encoder_norm", "norm"),
        *affine(r"head", "head"),
    ),
    # unlike Google's code it computes the exact GELU
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "zoom_linear"},
)

_RESNET = r"transformer\.embeddings\.hybrid_model\."
_UNIT = _RESNET + r"body\.block\d{1,3}\.unit\d{1,3}\."

JEONSWORLD_HYBRID = replace(
    JEONSWORLD,
    name="ViT-pytorch hybrid",
    signature=(*JEONSWORLD.signature, _RESNET + r"root\.conv\.weight"),
    rules=(
        *JEONSWORLD.rules,
        Rule(_RESNET + r"root\.conv\.weight", f"{BACKBONE}stem.conv.weight"),
        *affine(_RESNET + r"root\.gn", f"{BACKBONE}stem.norm"),
        Rule(_UNIT + r"(?:conv[123]|downsample)\.weight", unit_key),
        Rule(_UNIT + r"gn(?:[123]|_proj)\.(?:weight|bias)", unit_key),
    ),
    fields={
        **JEONSWORLD.fields,
        "resnet_padding": "symmetric",
        "weight_eps": 1e-5,
        "weight_eps_place": "variance",
        "group_norm_eps": 1e-6,
        "projection_norm": "channel",
    },
    fields_type=HybridFields,
)

TABLES: tuple[KeyTable, ...] = (JEONSWORLD_HYBRID, JEONSWORLD)
