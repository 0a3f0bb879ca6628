"""The table of architectures, and how a name becomes a model."""

from __future__ import annotations

import difflib
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from vitfast.errors import UserError
from vitfast.models.deit import DistilledVisionTransformer
from vitfast.models.vit import VisionTransformer
from vitfast.models.vit_fields import ViTFields

# size -> its part of the fields
_SIZES: dict[str, dict[str, Any]] = {
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

ARCHITECTURES: dict[str, ViTFields] = {
    **{
        f"vit_{size}_patch{patch}_{img}": ViTFields(img_size=img, patch_size=patch, **parts)
        for size, parts in _SIZES.items()
        for patch, img in _VIT_PATCHES
    },
    **{f"deit_{size}_patch16_{img}": ViTFields(img_size=img, **_SIZES[size]) for size, img in _DEIT_SIZES},
    **{
        f"deit_{size}_distilled_patch16_{img}": ViTFields(
            img_size=img, distillation_token="after_class", **_SIZES[size]
        )
        for size, img in _DEIT_SIZES
    },
    # small images: the handwritten digits (8 x 8, gray; or enlarged to 16 x 16) and CIFAR (32 x 32)
    "vit_nano_patch2_8": ViTFields(img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4),
    "vit_nano_patch4_16": ViTFields(img_size=16, patch_size=4, in_chans=1, embed_dim=64, depth=4, num_heads=4),
    "vit_mini_patch4_32": ViTFields(img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3),
}

# Google's and ViT-pytorch's names, which say no image size: 224 unless img_size is given
_ALIASES = {
    "ViT-Ti_16": "vit_tiny_patch16_224",
    "ViT-S_16": "vit_small_patch16_224",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-B_32": "vit_base_patch32_224",
    "ViT-L_16": "vit_large_patch16_224",
    "ViT-L_32": "vit_large_patch32_224",
    "ViT-H_14": "vit_huge_patch14_224",
}


def list_models(pattern: str = "*") -> list[str]:
    """Lists the architectures whose name matches a shell pattern, sorted.

    Args:
        pattern: for example ``"vit_base*"`` or ``"*_384"``.
    """
    return sorted(name for name in ARCHITECTURES if fnmatchcase(name, pattern))


def resolve_name(name: str) -> str:
    """Turns an alias, or a name with timm's tag (``vit_base_patch16_224.augreg_in1k``), into the architecture's name.

    Raises:
        UserError: there is no such architecture; the message names the nearest ones.
    """
    architecture = name.partition(".")[0]
    architecture = _ALIASES.get(architecture, architecture)
    if architecture not in ARCHITECTURES:
        nearest = _nearest(architecture, [*ARCHITECTURES, *_ALIASES])
        raise UserError(f"unknown model {name!r}; the nearest: {nearest}; vitfast.list_models() lists all")
    return architecture


def build_model(name: str, **overrides: Any) -> VisionTransformer:
    """Builds a freshly initialized model.

    Args:
        name: an architecture's name, an alias, or a name with timm's tag.
        **overrides: fields of ``ViTFields`` that differ from the architecture's.

    Raises:
        UserError: the name or a field is unknown, or a field's value is not allowed.
    """
    name = resolve_name(name)
    known = [field.name for field in dataclass_fields(ViTFields)]
    for field in overrides:
        if field not in known:
            raise UserError(
                f"unknown model field {field!r}; the nearest: {_nearest(field, known)}; all fields: {', '.join(known)}"
            )
    fields = replace(ARCHITECTURES[name], **overrides)
    model_class = VisionTransformer if fields.distillation_token == "none" else DistilledVisionTransformer
    return model_class(name, fields)


def _nearest(word: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))
