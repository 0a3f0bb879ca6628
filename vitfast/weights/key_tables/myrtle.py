"""myrtle-vision 1.0.0 (github.com/MyrtleSoftware/myrtle-vision), full precision and quantization-aware.

Preparing a model for quantization wraps each linear layer and LayerNorm as the second of a sequence, hence the
``.1`` that may come before ``.weight`` and ``.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine

_WRAPPED = r"(?:\.1)?"
_ATTENTION = r"transformer\.layers\.(\d+)\.0\.fn\."
_MLP = r"transformer\.layers\.(\d+)\.1\.fn\."
_HEAD_DIM = 64  # fixed: the model requires embed_dim == num_heads * 64


def _read_fields(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("transformer.layers.0.0.fn.fn.to_qkv.weight", "transformer.layers.0.0.fn.fn.to_qkv.1.weight"):
        if key in tensors:
            return {"num_heads": len(tensors[key]) // (3 * _HEAD_DIM)}
    return {}


MYRTLE = KeyTable(
    name="myrtle-vision",
    signature=(rf"patch_to_embedding{_WRAPPED}\.weight", rf"{_ATTENTION}fn\.to_qkv{_WRAPPED}\.weight"),
    rules=(
        Rule(r"cls_token", "cls_token"),
        Rule(r"pos_embedding", "pos_embed"),
        *affine(rf"patch_to_embedding{_WRAPPED}", "patch_embed.proj"),
        *affine(rf"{_ATTENTION}norm{_WRAPPED}", r"blocks.\1.norm1"),
        *affine(rf"{_ATTENTION}fn\.to_qkv{_WRAPPED}", r"blocks.\1.attn.qkv"),
        *affine(rf"{_ATTENTION}fn\.to_out\.0{_WRAPPED}", r"blocks.\1.attn.proj"),
        *affine(rf"{_MLP}norm{_WRAPPED}", r"blocks.\1.norm2"),
        *affine(rf"{_MLP}fn\.net\.0{_WRAPPED}", r"blocks.\1.mlp.fc1"),
        *affine(rf"{_MLP}fn\.net\.3{_WRAPPED}", r"blocks.\1.mlp.fc2"),
        *affine(rf"mlp_head\.0{_WRAPPED}", "fc_norm"),
        *affine(rf"mlp_head\.1{_WRAPPED}", "head"),
    ),
    fields={"layer_norm_eps": 1e-5, "gelu": "erf", "position_interpolation": "bicubic"},
    read_fields=_read_fields,
    # ranges observed by torch's INT8 preparation
    ignored=(r".+\.(activation_post_process|weight_fake_quant)\..+",),
    unsupported=((r"decoder\..+|det_tokens", "a model of myrtle-vision 2"),),
)

TABLES: tuple[KeyTable, ...] = (MYRTLE,)
