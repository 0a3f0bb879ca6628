"""EVA-02, and the layout in which timm keeps EVA-02 and DINOv3: separate q, k and v, or gate and value of SwiGLUs.

vitfast's models keep these in one layer each. ``timm_keys`` gives the files of ``save_weights`` timm's keys.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vitfast.models.model_fields import ModelFields
from vitfast.models.vit import ViTFields
from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine, stacked_affine, write_keys

_ROOT = r"(?:visual\.)?"  # of EVA-CLIP
_BLOCK = r"blocks\.(\d+)\."

_LAYER_SCALES = (Rule(_BLOCK + r"gamma_([12])", r"blocks.\1.ls\2.gamma"),)
_SEPARATE_GATE = stacked_affine([_BLOCK + rf"mlp\.fc1_{part}" for part in "gx"], r"blocks.\1.mlp.fc1")


def _separate_qkv(root: str) -> tuple[Rule, ...]:
    attention = root + _BLOCK + r"attn\."
    return (
        *(
            Rule(attention + rf"{letter}_proj\.weight", r"blocks.\1.attn.qkv.weight", part=part, parts=3)
            for part, letter in enumerate("qkv")
        ),
        Rule(attention + r"([qv])_proj\.bias", r"blocks.\1.attn.\2_bias"),
    )


TIMM_EVA = KeyTable(
    name="timm EVA",
    signature=(r"patch_embed\.proj\.weight", _BLOCK + r"(?:gamma_1|attn\.q_bias|attn\.q_proj\.weight)"),
    rules=(*_LAYER_SCALES, *_separate_qkv(""), *_SEPARATE_GATE, Rule(r"(.+)", r"\1")),
    fields={"position_interpolation": "bicubic_antialias"},
    unsupported=((r".+\.relative_position_bias_table", "a BEiT"),),
)

# github.com/baaivision/EVA
EVA02 = KeyTable(
    name="EVA-02",
    signature=(
        _ROOT + r"patch_embed\.proj\.weight",
        _ROOT + _BLOCK + r"mlp\.w3\.weight",
        _ROOT + _BLOCK + r"attn\.q_.+",
    ),
    rules=(
        *_separate_qkv(_ROOT),
        *affine(_ROOT + _BLOCK + r"attn\.inner_attn_ln", r"blocks.\1.attn.norm"),
        *stacked_affine([_ROOT + _BLOCK + rf"mlp\.w{part}" for part in (1, 2)], r"blocks.\1.mlp.fc1"),
        *affine(_ROOT + _BLOCK + r"mlp\.w12", r"blocks.\1.mlp.fc1"),
        *affine(_ROOT + _BLOCK + r"mlp\.w3", r"blocks.\1.mlp.fc2"),
        *affine(_ROOT + _BLOCK + r"mlp\.ffn_ln", r"blocks.\1.mlp.norm"),
        Rule(_ROOT + r"(.+)", r"\1"),
    ),
    fields={"layer_norm_eps": 1e-6, "rotary": "eva02", "position_interpolation": "bicubic"},
    ignored=(r"(?:.+\.)?rope\..+", r"text\..+", r"logit_scale"),
)

# before fine-tuning, which moves the LayerNorm behind the pooling
EVA02_PRETRAINED = replace(
    EVA02,
    signature=(*EVA02.signature, r"mask_token"),
    rules=(*affine(r"norm", "fc_norm"), *EVA02.rules),
    ignored=(*EVA02.ignored, r"mask_token", r"lm_head\..+"),
)

TABLES: tuple[KeyTable, ...] = (EVA02_PRETRAINED, EVA02, TIMM_EVA)


def timm_keys(state: dict[str, Tensor], fields: ModelFields) -> dict[str, Tensor]:
    """Returns a model's weights under timm's keys; ``TIMM_EVA`` is the inverse."""
    if not isinstance(fields, ViTFields) or fields.rotary == "none":
        return state
    rules: tuple[Rule, ...] = _LAYER_SCALES
    if fields.mlp_norm:  # timm keeps q, k and v apart in the same models
        rules += _separate_qkv("")
    if fields.gated_mlp and (fields.mlp_norm or fields.rotary == "dinov3"):
        rules += _SEPARATE_GATE
    return write_keys(state, rules)
