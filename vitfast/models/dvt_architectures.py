"""The table of Dynamic Vision Transformers."""

from __future__ import annotations

from vitfast.models.dvt_fields import DVTFields
from vitfast.models.t2t_vit_architectures import T2T_VIT_SIZES

DVT_ARCHITECTURES: dict[str, DVTFields] = {
    # exits at 7 x 7, 10 x 10 and 14 x 14 tokens
    "dvt_deit_small": DVTFields(),
    **{
        f"dvt_t2t_vit_{size}": DVTFields(
            backbone="t2t_vit",
            patch_sizes=(14, 11, 7),
            patch_strides=(8, 6, 4),
            patch_paddings=(3, 5, 2),
            layer_norm_eps=1e-5,
            qkv_bias=False,
            **T2T_VIT_SIZES[size],
        )
        for size in (12, 14)
    },
    # small images: exits at 4 x 4 and 8 x 8 tokens for CIFAR, at 2 x 2 and 4 x 4 for the handwritten digits
    "dvt_mini_32": DVTFields(
        img_size=32,
        embed_dim=128,
        depth=6,
        num_heads=4,
        patch_sizes=(8, 4),
        patch_strides=(8, 4),
        patch_paddings=(0, 0),
        reuse_dim=24,
        reuse_hidden_dim=64,
    ),
    "dvt_nano_16": DVTFields(
        img_size=16,
        in_chans=1,
        embed_dim=64,
        depth=4,
        num_heads=4,
        patch_sizes=(8, 4),
        patch_strides=(8, 4),
        patch_paddings=(0, 0),
        reuse_dim=16,
        reuse_hidden_dim=32,
    ),
}

# the original code's names
DVT_ALIASES = {
    "DVT_Deit_small": "dvt_deit_small",
    "DVT_T2t_vit_12": "dvt_t2t_vit_12",
    "DVT_T2t_vit_14": "dvt_t2t_vit_14",
}
