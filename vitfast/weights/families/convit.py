"""ConViT's own files (github.com/facebookresearch/convit) and timm's, which have the same keys."""

from __future__ import annotations

from vitfast.models.convit_fields import ConViTFields
from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule

CONVIT = Family(
    name="ConViT",
    signature=(r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.gating_param"),
    rules=(Rule(r"(.+)", r"\1"),),
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    models=ConViTFields,
)
