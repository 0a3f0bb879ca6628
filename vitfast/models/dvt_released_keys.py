"""The keys of the released Dynamic Vision Transformers."""

from __future__ import annotations

# (part of a released key, the same part here), one to one. To be applied in this order: the second is in the first.
DVT_RELEASED_KEYS: tuple[tuple[str, str], ...] = (
    ("less_less_token.", "exits.0."),
    ("less_token.", "exits.1."),
    ("normal_token.", "exits.2."),
    (".tokens_to_token.", ".patch_embed."),
    (".feature_resuse_mlp.0.", ".feature_reuse.norm."),
    (".feature_resuse_mlp.1.", ".feature_reuse.mlp."),
    (".relation_reuse_conv.", ".relation_reuse.mlp."),
)


def from_released_key(key: str) -> str:
    """Returns a released model's key as ours; ours stay as they are."""
    for released, own in DVT_RELEASED_KEYS:
        key = key.replace(released, own)
    return key
