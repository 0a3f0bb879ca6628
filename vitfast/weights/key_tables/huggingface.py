"""Hugging Face's ViT and DeiT: ``ViTModel``, ``ViTForImageClassification``, ``DeiTForImageClassificationWithTeacher``.

Files use ``encoder.layer.0.attention.attention.query``; models of transformers 5 in memory use
``layers.0.attention.q_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine, stacked_affine

_ROOT = r"(?:vit\.|deit\.)?"
_BLOCK = _ROOT + r"(?:encoder\.layer|layers)\.(\d+)\."
QKV = (("query", "q"), ("key", "k"), ("value", "v"))

# config.json's hidden_act -> the field gelu
_ACTIVATIONS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "quick_gelu": "quick",
}


def read_config_fields(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the fields that the weights do not determine from a ``config.json``."""
    names = {"num_attention_heads": "num_heads", "layer_norm_eps": "layer_norm_eps"}
    fields = {field: config[name] for name, field in names.items() if name in config}
    if "hidden_act" in config:
        if config["hidden_act"] not in _ACTIVATIONS:
            raise UserError(
                f"config.json has hidden_act={config['hidden_act']!r}, which vitfast does not support; supported: "
                f"{', '.join(_ACTIVATIONS)}"
            )
        fields["gelu"] = _ACTIVATIONS[config["hidden_act"]]
    return fields


HUGGINGFACE = KeyTable(
    name="Hugging Face ViT and DeiT",
    signature=(_ROOT + r"embeddings\.patch_embeddings\.projection\.weight", _BLOCK + r"layernorm_before\.weight"),
    rules=(
        Rule(_ROOT + r"embeddings\.cls_token", "cls_token"),
        Rule(_ROOT + r"embeddings\.distillation_token", "dist_token"),
        Rule(_ROOT + r"embeddings\.position_embeddings", "pos_embed"),
        *affine(_ROOT + r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        *affine(_BLOCK + r"layernorm_before", r"blocks.\1.norm1"),
        *stacked_affine(
            [_BLOCK + rf"attention\.(?:attention\.{word}|{letter}_proj)" for word, letter in QKV],
            r"blocks.\1.attn.qkv",
        ),
        *affine(_BLOCK + r"attention\.(?:output\.dense|o_proj)", r"blocks.\1.attn.proj"),
        *affine(_BLOCK + r"layernorm_after", r"blocks.\1.norm2"),
        *affine(_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)", r"blocks.\1.mlp.fc1"),
        *affine(_BLOCK + r"(?:output\.dense|mlp\.fc2)", r"blocks.\1.mlp.fc2"),
        *affine(_ROOT + r"layernorm", "norm"),
        *affine(r"(?:cls_)?classifier", "head"),
        *affine(r"distillation_classifier", "head_dist"),
    ),
    # ViTConfig's defaults, which config.json overrides
    fields={"layer_norm_eps": 1e-12, "gelu": "erf", "position_interpolation": "bicubic"},
    read_fields=read_config_fields,
    ignored=(_ROOT + r"pooler\..+", _ROOT + r"embeddings\.mask_token"),
)

TABLES: tuple[KeyTable, ...] = (HUGGINGFACE,)
