"""The table of ViT and DeiT architectures."""

from __future__ import annotations

from typing import Any

from vitfast.models.vit_fields import ViTFields

# size -> its part of the fields
VIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}

# (patch_size, img_size) of each ViT size; 384 is no multiple of 14
_VIT_PATCHES = ((8, 224), (8, 384), (14, 224), (16, 224), (16, 384), (32, 224), (32, 384))

# (size, img_size) of DeiT, plain and distilled, with patches of 16
_DEIT_SIZES = (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))

VIT_ARCHITECTURES: dict[str, ViTFields] = {
    **{
        f"vit_{size}_patch{patch}_{img}": ViTFields(img_size=img, patch_size=patch, **parts)
        for size, parts in VIT_SIZES.items()
        for patch, img in _VIT_PATCHES
    },
    **{f"deit_{size}_patch16_{img}": ViTFields(img_size=img, **VIT_SIZES[size]) for size, img in _DEIT_SIZES},
    **{
        f"deit_{size}_distilled_patch16_{img}": ViTFields(
            img_size=img, distillation_token="after_class", **VIT_SIZES[size]
        )
        for size, img in _DEIT_SIZES
    },
    # small images: the handwritten digits (8 x 8, gray; or enlarged to 16 x 16) and CIFAR (32 x 32)
    "vit_nano_patch2_8": ViTFields(img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4),
    "vit_nano_patch4_16": ViTFields(img_size=16, patch_size=4, in_chans=1, embed_dim=64, depth=4, num_heads=4),
    "vit_mini_patch4_32": ViTFields(img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3),
}

# Google's and ViT-pytorch's names, which say no image size: 224 unless img_size is given
VIT_ALIASES = {
    "ViT-Ti_16": "vit_tiny_patch16_224",
    "ViT-S_16": "vit_small_patch16_224",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-B_32": "vit_base_patch32_224",
    "ViT-L_16": "vit_large_patch16_224",
    "ViT-L_32": "vit_large_patch32_224",
    "ViT-H_14": "vit_huge_patch14_224",
}
