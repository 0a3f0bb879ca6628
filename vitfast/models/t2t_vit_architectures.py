"""The table of T2T-ViT architectures."""

from __future__ import annotations

from typing import Any

from vitfast.models.t2t_vit_fields import T2TViTFields

# depth, which names it -> its part of the fields
T2T_VIT_SIZES: dict[int, dict[str, Any]] = {
    7: {"depth": 7, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0},
    10: {"depth": 10, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0},
    12: {"depth": 12, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0},
    14: {"depth": 14, "embed_dim": 384, "num_heads": 6, "mlp_ratio": 3.0},
    19: {"depth": 19, "embed_dim": 448, "num_heads": 7, "mlp_ratio": 3.0},
    24: {"depth": 24, "embed_dim": 512, "num_heads": 8, "mlp_ratio": 3.0},
}

T2T_VIT_ARCHITECTURES: dict[str, T2TViTFields] = {
    **{f"t2t_vit_{size}": T2TViTFields(**parts) for size, parts in T2T_VIT_SIZES.items()},
    **{f"t2t_vit_t_{size}": T2TViTFields(tokens_type="transformer", **T2T_VIT_SIZES[size]) for size in (14, 19, 24)},
}

# the Dynamic Vision Transformer's code writes the first letter large
T2T_VIT_ALIASES = {f"T{name[1:]}": name for name in T2T_VIT_ARCHITECTURES}
