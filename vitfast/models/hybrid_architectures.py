"""The table of hybrid architectures."""

from __future__ import annotations

from typing import Any

from vitfast.models.hybrid_fields import HybridFields
from vitfast.models.vit_architectures import VIT_SIZES

# the name that timm gives it without the image size -> its part of the fields; Google's vit_jax/configs/models.py
_HYBRIDS: dict[str, dict[str, Any]] = {
    # with the pooling of the stem its patches are of 32 pixels, whatever both names say
    "vit_tiny_r_s16_p8": {"resnet_layers": (), "patch_size": 8, **VIT_SIZES["tiny"]},
    "vit_small_r26_s32": {"resnet_layers": (2, 2, 2, 2), **VIT_SIZES["small"]},
    "vit_base_r26_s32": {"resnet_layers": (2, 2, 2, 2), **VIT_SIZES["base"]},
    # one stage less than a ResNet-50, and its bottlenecks in the last one, for a stride of 16
    "vit_base_r50_s16": {"resnet_layers": (3, 4, 9), **VIT_SIZES["base"]},
    "vit_large_r50_s32": {"resnet_layers": (3, 4, 6, 3), **VIT_SIZES["large"]},
}

HYBRID_ARCHITECTURES: dict[str, HybridFields] = {
    f"{name}_{img}": HybridFields(img_size=img, **parts) for name, parts in _HYBRIDS.items() for img in (224, 384)
}

# Google's and ViT-pytorch's names, which say no image size: 224 unless img_size is given
HYBRID_ALIASES = {
    "R+ViT-Ti_16": "vit_tiny_r_s16_p8_224",
    "R26+ViT-S_32": "vit_small_r26_s32_224",
    "R26+ViT-B_32": "vit_base_r26_s32_224",
    "R50+ViT-B_16": "vit_base_r50_s16_224",
    "R50-ViT-B_16": "vit_base_r50_s16_224",
    "R50+ViT-L_32": "vit_large_r50_s32_224",
}
