"""The released Dynamic Vision Transformers (github.com/blackfeather-wang/Dynamic-Vision-Transformer).

The files hold the thresholds of the exits beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.models.dvt_fields import DVTFields
from vitfast.weights.exit_records import released_exits
from vitfast.weights.key_tables.key_table import KeyTable, Rule

# (part of a released key, the same part in vitfast's), applied in this order: the first contains the second
_RELEASED_PARTS = (
    ("less_less_token.", "exits.0."),
    ("less_token.", "exits.1."),
    ("normal_token.", "exits.2."),
    (".tokens_to_token.", ".patch_embed."),
    (".feature_resuse_mlp.0.", ".feature_reuse.norm."),
    (".feature_resuse_mlp.1.", ".feature_reuse.mlp."),
    (".relation_reuse_conv.", ".relation_reuse.mlp."),
)


def from_released_key(key: str) -> str:
    """Converts a released model's key to vitfast's; vitfast's keys stay unchanged."""
    for released, ours in _RELEASED_PARTS:
        key = key.replace(released, ours)
    return key


def _read_fields(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Exits over DeiT use DeiT's epsilon, those over T2T-ViT torch's default."""
    over_deit = any(from_released_key(key) == "exits.0.patch_embed.proj.weight" for key in tensors)
    return {"layer_norm_eps": 1e-6 if over_deit else 1e-5}


DVT = KeyTable(
    name="DVT",
    signature=(r"less_less_token\.blocks\.\d+\..+", r"normal_token\..+"),
    rules=(Rule(r"(?:less_less|less|normal)_token\..+", from_released_key),),
    fields={"position_interpolation": "bicubic"},
    read_fields=_read_fields,
    read_exits=released_exits,
    fields_type=DVTFields,
)

TABLES: tuple[KeyTable, ...] = (DVT,)
