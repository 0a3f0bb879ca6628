"""timm's keys, which are ours, and what else uses them: DeiT's own files."""

from __future__ import annotations

from dataclasses import replace

from vitfast.models.hybrid_fields import HybridFields
from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule

_SIGNATURE = (r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.qkv\.weight")
_OWN_KEYS = (Rule(r"(.+)", r"\1"),)

TIMM = Family(
    name="timm",
    signature=_SIGNATURE,
    rules=_OWN_KEYS,
    fields={"position_interpolation": "bicubic_antialias"},
)

# Google's weights, for which timm computes with other epsilons than Google
TIMM_HYBRID = replace(
    TIMM,
    name="timm hybrid",
    signature=(*_SIGNATURE, r"patch_embed\.backbone\.(stem\.)?conv\.weight"),
    fields={
        **TIMM.fields,
        "resnet_padding": "same",
        "weight_eps": 1e-8,
        "weight_eps_place": "variance",
        "group_norm_eps": 1e-5,
        "projection_norm": "group",
    },
    models=HybridFields,
)

# github.com/facebookresearch/deit saves timm's models under "model"
DEIT = Family(
    name="DeiT",
    signature=_SIGNATURE,
    rules=_OWN_KEYS,
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    wrapper="model",
)
