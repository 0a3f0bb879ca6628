"""What the weights of a stack of transformer blocks say about it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

NUMBER = r"(\d{1,6})"  # of a layer; Python refuses to read thousands of digits


def block_fields(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Returns depth, ``embed_dim``, ``mlp_ratio`` and ``qkv_bias``, as far as the weights tell them.

    Args:
        state: weights under our keys.
        prefix: beginning of the blocks' keys, ``"exits.0."`` for example.
    """
    fields: dict[str, Any] = {}
    root = rf"{re.escape(prefix)}blocks\.{NUMBER}\."
    blocks = {int(match[1]) for key in state if (match := re.match(root, key))}
    if blocks:
        # a hostile file may number its only block 999999
        fields["depth"] = max(blocks) + 1 if max(blocks) < len(state) else len(blocks)
        fields["qkv_bias"] = any(re.fullmatch(root + r"attn\.(qkv|qk|v)\.bias", key) for key in state)
    mlp = next((state[key] for key in state if re.fullmatch(root + r"mlp\.fc1\.weight", key)), None)
    if mlp is not None and mlp.dim() == 2 and mlp.shape[1]:
        fields["embed_dim"] = mlp.shape[1]
        fields["mlp_ratio"] = mlp.shape[0] / mlp.shape[1]
    return fields


def rows_of(state: Mapping[str, Tensor], key: str) -> int:
    """Returns the rows of a matrix, 0 where there is none."""
    weight = state.get(key)
    return len(weight) if weight is not None and weight.dim() == 2 else 0


def columns_of(state: Mapping[str, Tensor], key: str) -> int:
    """Returns the columns of a matrix, 0 where there is none."""
    weight = state.get(key)
    return weight.shape[1] if weight is not None and weight.dim() == 2 else 0


def grid_of(positions: Tensor | None, num_prefix_tokens: int) -> int:
    """Returns the side of the square grid that position embeddings ``[1, T + G * G, C]`` are for; 0 for no square."""
    if positions is None or positions.dim() != 3:
        return 0
    patches = max(positions.shape[1] - num_prefix_tokens, 0)
    grid_size = math.isqrt(patches)
    return grid_size if grid_size**2 == patches else 0


def pixels_of(numbers: int) -> tuple[int, int] | None:
    """Splits the numbers of a flattened square patch into ``(in_chans, patch_size)``.

    Of the channels that images have, one gives a square; None where none does.
    """
    for in_chans in (3, 1, 4):
        patch_size = math.isqrt(numbers // in_chans)
        if patch_size and patch_size**2 * in_chans == numbers:
            return in_chans, patch_size
    return None
