"""Saved position embeddings for another image size."""

from __future__ import annotations

import math

from torch import Tensor

from vitfast.layers import resize_position_embedding
from vitfast.layers.position_embedding import PositionInterpolation


def resize_positions(
    state: dict[str, Tensor],
    key: str,
    own: Tensor,
    interpolation: PositionInterpolation,
    *,
    num_prefix_tokens: int = 1,
) -> list[str]:
    """Resamples ``state[key]`` in place to the grid of a model's own position embeddings.

    Args:
        state: saved weights.
        key: of the position embeddings, ``[1, T + g * g, C]``.
        own: the model's, ``[1, T + G * G, C]``.
        interpolation: see ``resize_position_embedding``.
        num_prefix_tokens: T, tokens that are no patches.

    Returns:
        The key in a list where something was resized, else an empty list: what does not fit otherwise stays as it is.
    """
    saved = state.get(key)
    if saved is None or saved.shape == own.shape:
        return []
    if saved.dim() != 3 or saved.shape[::2] != own.shape[::2]:
        return []  # other channels: the weights of another architecture
    grid_size = math.isqrt(own.shape[1] - num_prefix_tokens)
    try:
        state[key] = resize_position_embedding(
            saved, grid_size, num_prefix_tokens=num_prefix_tokens, interpolation=interpolation
        )
    except ValueError:
        return []  # no square grid of patches: the weights of another kind of model
    return [key]
