"""Pre-trained image towers that are ViTs: DINOv2, DINOv3, CLIP, SigLIP and EVA-02, under timm's names."""

from __future__ import annotations

from typing import Any

from vitfast.models.vit import VIT_SIZES, ViTFields

_SIZES: dict[str, dict[str, Any]] = {
    **VIT_SIZES,
    "xsmall": {"embed_dim": 256, "depth": 10, "num_heads": 4},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "betwixt": {"embed_dim": 640, "depth": 12, "num_heads": 10},
    "base_plus": {"embed_dim": 896, "depth": 12, "num_heads": 14},
    "so400m": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
    "giantopt": {"embed_dim": 1536, "depth": 40, "num_heads": 16},
    "gigantic": {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13},
}


def _dinov2() -> dict[str, ViTFields]:
    swiglu = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "gated_mlp": True, "mlp_ratio": 2 * 2.66667}
    sizes = {name: _SIZES[name] for name in ("small", "base", "large")} | {"giant": swiglu}
    shared: dict[str, Any] = {"img_size": 518, "patch_size": 14, "layer_scale": 1e-5}
    return {
        f"vit_{size}_patch14_{registers}dinov2": ViTFields(
            register_tokens=4 if registers else 0, prefix_positions=not registers, **shared, **fields
        )
        for size, fields in sizes.items()
        for registers in ("", "reg4_")
    }


# (size, patch_size, img_size)
_CLIP = (
    ("xsmall", 16, 224),
    ("medium", 32, 224),
    ("medium", 16, 224),
    ("betwixt", 32, 224),
    *(("base", 32, img) for img in (224, 256, 384, 448)),
    *(("base", 16, img) for img in (224, 384)),
    *(("large", 14, img) for img in (224, 336)),
    *(("huge", 14, img) for img in (224, 336, 378)),
    ("giant", 14, 224),
    *(("gigantic", 14, img) for img in (224, 378)),
)
_QUICK_CLIP = (
    *(("base", patch, 224) for patch in (32, 16)),
    *(("large", 14, img) for img in (224, 336)),
    *(("huge", 14, img) for img in (224, 378)),
    ("gigantic", 14, 224),
)


def _clip() -> dict[str, ViTFields]:
    """The published weights without ``quickgelu`` in the name were trained with the exact GELU."""
    shared: dict[str, Any] = {"pre_norm": True, "layer_norm_eps": 1e-5}
    return {
        "vit_base_patch16_plus_clip_240": ViTFields(img_size=240, **shared, **_SIZES["base_plus"]),
        **{
            f"vit_{size}_patch{patch}_clip_{img}": ViTFields(img_size=img, patch_size=patch, **shared, **_SIZES[size])
            for size, patch, img in _CLIP
        },
        **{
            f"vit_{size}_patch{patch}_clip_quickgelu_{img}": ViTFields(
                img_size=img, patch_size=patch, gelu="quick", **shared, **_SIZES[size]
            )
            for size, patch, img in _QUICK_CLIP
        },
    }


# (size, patch_size, img_size), with the exact GELU of SigLIP. timm's names with 384 and patches of 14 are left out: 384
# is not a multiple of 14, and 378 is the same grid.
_SIGLIP = (
    *(("base", 16, img) for img in (224, 256, 384, 512)),
    *(("large", 16, img) for img in (256, 384)),
    *(("so400m", 14, img) for img in (224, 378)),
)
# with the tanh approximation, of SigLIP 2
_SIGLIP_TANH = (
    ("base", 32, 256),
    ("large", 16, 512),
    *(("so400m", 16, img) for img in (256, 384, 512)),
    *(("giantopt", 16, img) for img in (256, 384)),
)
# only without the attention pooling
_SIGLIP_MEAN = tuple(("so400m", 14, img) for img in (448, 896))


def _siglip() -> dict[str, ViTFields]:
    names = {}
    for sizes, gelu in ((_SIGLIP, "erf"), (_SIGLIP_TANH, "tanh"), (_SIGLIP_MEAN, "erf")):
        for size, patch, img in sizes:
            shared = {"img_size": img, "patch_size": patch, "class_token": False, "gelu": gelu, **_SIZES[size]}
            names[f"vit_{size}_patch{patch}_siglip_gap_{img}"] = ViTFields(pooling="mean", **shared)
            if sizes is not _SIGLIP_MEAN:
                names[f"vit_{size}_patch{patch}_siglip_{img}"] = ViTFields(pooling="map", **shared)
    return names


_DINOV3_SIZES: dict[str, dict[str, Any]] = {
    **{name: _SIZES[name] for name in ("tiny", "small", "base", "large")},
    "small_plus": {**_SIZES["small"], "gated_mlp": True, "mlp_ratio": 8.0},
    "huge_plus": {**_SIZES["huge"], "num_heads": 20, "gated_mlp": True, "mlp_ratio": 8.0},
    "7b": {"embed_dim": 4096, "depth": 40, "num_heads": 32, "gated_mlp": True, "mlp_ratio": 4.0},
}


def _dinov3() -> dict[str, ViTFields]:
    """``qkvb``: with biases of q and v. They are zero in most published weights, so timm also has names without."""
    shared: dict[str, Any] = {
        **{"img_size": 256, "layer_norm_eps": 1e-5, "layer_scale": 1e-5, "register_tokens": 4, "pooling": "patch_mean"},
        **{"learned_positions": False, "rotary": "dinov3", "key_bias": False},
    }
    return {
        f"vit_{size}_patch16_dinov3{suffix}": ViTFields(qkv_bias=bool(suffix), **shared, **fields)
        for size, fields in _DINOV3_SIZES.items()
        for suffix in ("", "_qkvb")
        if (size, suffix) not in (("tiny", ""), ("7b", "_qkvb"))
    }


# (size, patch_size, img_size)
_EVA02 = (
    *((size, 14, img) for size in ("tiny", "small") for img in (224, 336)),
    *((size, 14, img) for size in ("base", "large") for img in (224, 448)),
)
_EVA02_CLIP = (("base", 16, 224), ("large", 14, 224), ("large", 14, 336))


def _eva02() -> dict[str, ViTFields]:
    """Without the enormous CLIP, whose blocks have the LayerNorm after each branch."""

    def fields(size: str, patch: int, img: int, **options: Any) -> ViTFields:
        sizes = _SIZES[size]
        mlp_ratio = 2 * (8 * sizes["embed_dim"] // 3) / sizes["embed_dim"]
        shared = {"rotary": "eva02", "key_bias": False, "gated_mlp": True, "mlp_ratio": mlp_ratio}
        mlp_norm = size in ("base", "large")
        return ViTFields(img_size=img, patch_size=patch, mlp_norm=mlp_norm, **shared, **options, **sizes)

    mean: dict[str, Any] = {"pooling": "patch_mean", "head_type": "norm_linear"}
    return {
        **{f"eva02_{size}_patch{patch}_{img}": fields(size, patch, img, **mean) for size, patch, img in _EVA02},
        **{
            f"eva02_{size}_patch{patch}_clip_{img}": fields(size, patch, img, attention_norm=True)
            for size, patch, img in _EVA02_CLIP
        },
    }


TOWER_ARCHITECTURES: dict[str, ViTFields] = {**_dinov2(), **_dinov3(), **_clip(), **_siglip(), **_eva02()}
