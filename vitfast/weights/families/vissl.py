"""VISSL's Vision Transformers (github.com/facebookresearch/vissl): a trunk with timm's keys, and heads.

The number of attention heads is not in a ViT's file. SwAV's projection and prototypes, deeper MLPs and several heads in
a row are no heads that a model here has: they are skipped, and ``vissl_head`` builds them.
"""

from __future__ import annotations

from vitfast.models.convit_fields import ConViTFields
from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule, affine, flattened

_TRUNK = r"(?:trunk\.)?(?:base_model\.)?"  # base_model: the trunk was used to extract features
_RULES = (
    Rule(_TRUNK + r"(?:cls|class)_token", "cls_token"),
    Rule(_TRUNK + r"pos_embed(?:ding)?", "pos_embed"),
    Rule(_TRUNK + r"((?:patch_embed|blocks|norm)\..+)", r"\1"),
    *affine(r"heads\.0\.clf\.0", "head"),  # VISSL's "mlp"
    *affine(r"heads\.0\.layers\.pre_logits", "pre_logits.fc"),  # VISSL's "vision_transformer_head"
    *affine(r"heads\.0\.layers\.head", "head"),
)
_LEFTOVERS = (
    r"heads\.\d+\.(projection_head|prototypes\d+)\..+",  # SwAV
    _TRUNK + r"patch_masking\..+",  # iBOT
)
# further layers of VISSL's "mlp" and its other heads; a second head, which reads the first one
_HEAD_INPUTS = (
    r"heads\.0\.(?!clf\.0\.|layers\.(pre_logits|head)\.|projection_head\.|prototypes\d+\.).+",
    r"heads\.[1-9]\d*\..+",
)

VISSL = Family(
    name="VISSL",
    signature=(r"trunk\.(base_model\.)?cls_token", r"trunk\.(base_model\.)?blocks\.\d+\.attn\.qkv\.weight"),
    rules=_RULES,
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    leftovers=_LEFTOVERS,
    head_inputs=_HEAD_INPUTS,
)

# The names changed in October 2021. The epsilon was 1e-5 from the first model in February 2021 until May 2021; for a
# file from the months between, give layer_norm_eps=1e-6.
VISSL_2021 = Family(
    name="VISSL of 2021",
    signature=(_TRUNK + r"class_token", _TRUNK + r"pos_embedding", _TRUNK + r"blocks\.\d+\.attn\.qkv\.weight"),
    rules=_RULES,
    fields={"layer_norm_eps": 1e-5, "gelu": "erf", "position_interpolation": "bicubic"},
    leftovers=_LEFTOVERS,
    head_inputs=_HEAD_INPUTS,
)

# Its trunk has the old names to this day. The local initialization is what VISSL overwrites, see ``ConViTFields``.
VISSL_CONVIT = Family(
    name="VISSL ConViT",
    signature=(_TRUNK + r"class_token", _TRUNK + r"blocks\.\d+\.attn\.alpha"),
    rules=(
        Rule(_TRUNK + r"blocks\.(\d+)\.attn\.alpha", r"blocks.\1.attn.gating_param", flattened),
        *affine(_TRUNK + r"blocks\.(\d+)\.mlp\.linear_([12])", r"blocks.\1.mlp.fc\2"),
        *_RULES,
    ),
    fields={
        "layer_norm_eps": 1e-5,
        "gelu": "erf",
        "local_initialization": False,
        "position_interpolation": "bicubic_aligned",
    },
    leftovers=_LEFTOVERS,
    head_inputs=_HEAD_INPUTS,
    models=ConViTFields,
)
