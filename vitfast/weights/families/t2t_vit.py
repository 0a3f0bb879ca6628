"""T2T-ViT's own files (github.com/yitu-opensource/T2T-ViT), whose keys are ours."""

from __future__ import annotations

from vitfast.models.t2t_vit_fields import T2TViTFields
from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule

T2T_VIT = Family(
    name="T2T-ViT",
    signature=(r"tokens_to_token\.attention1\..+", r"blocks\.\d+\..+"),
    rules=(Rule(r"(.+)", r"\1"),),
    fields={"layer_norm_eps": 1e-5, "position_interpolation": "bicubic"},
    models=T2TViTFields,
    foreign=((r"blocks\..+\.(se_layer|dense_linear|cheap_operation\w+)\..+", "T2T-ViT's variant SE, Dense or Ghost"),),
)
