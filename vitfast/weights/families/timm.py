"""timm's keys, which are ours, and what else uses them: DeiT's own files."""

from __future__ import annotations

from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule

_SIGNATURE = (r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.qkv\.weight")
_OWN_KEYS = (Rule(r"(.+)", r"\1"),)

# timm has had, and dropped, a layer before the heads of ImageNet-21k
_HEAD_INPUTS = (r"pre_logits\..+",)

TIMM = Family(
    name="timm",
    signature=_SIGNATURE,
    rules=_OWN_KEYS,
    fields={"position_interpolation": "bicubic_antialias"},
    head_inputs=_HEAD_INPUTS,
)

# github.com/facebookresearch/deit saves timm's models under "model"
DEIT = Family(
    name="DeiT",
    signature=_SIGNATURE,
    rules=_OWN_KEYS,
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    head_inputs=_HEAD_INPUTS,
    wrapper="model",
)
