"""The table of ConViT architectures."""

from __future__ import annotations

from vitfast.models.convit_fields import ConViTFields

# size -> number of heads, a square: each begins by looking at one offset of a 2 x 2, 3 x 3 or 4 x 4 kernel
_SIZES = {"tiny": 4, "small": 9, "base": 16}

# channels of a head; vissl's models are those of 64
_HEAD_DIMS = {"": 48, "_plus": 64}

CONVIT_ARCHITECTURES: dict[str, ConViTFields] = {
    f"convit_{size}{suffix}": ConViTFields(embed_dim=num_heads * head_dim, num_heads=num_heads)
    for size, num_heads in _SIZES.items()
    for suffix, head_dim in _HEAD_DIMS.items()
}

# the paper's names
CONVIT_ALIASES = {
    f"ConViT-{short}{sign}": f"convit_{size}{suffix}"
    for short, size in (("Ti", "tiny"), ("S", "small"), ("B", "base"))
    for sign, suffix in (("", ""), ("+", "_plus"))
}
