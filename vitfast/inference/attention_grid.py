"""How attention falls on the image."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor


def attention_grid(attention_BNN: Tensor, *, reader: Literal["token", "mean"] = "token") -> Tensor:
    """Arranges the attention that reaches the result as the patches lie in the image.

    The patches are the last G * G tokens, for the largest G that there is room for; before them stand the class token
    and perhaps a distillation token.

    Args:
        attention_BNN: ``[B, N, N]``: an attention map of one head or of their mean, or ``attention_rollout``'s.
        reader: whose attention: that of the class ``"token"``, the first; or the ``"mean"`` of all tokens, for a model
            whose head reads this (the field ``pooling``). Where there is no class token, as in the first layers of a
            ConViT, it is the mean in any case: how much every patch is looked at.

    Returns:
        ``[B, G, G]``, rows from top to bottom. What goes to the tokens before the patches is not among it, so that the
        sum is 1 or less.

    Raises:
        ValueError: the shape is another, or ``reader`` is neither.
    """
    if attention_BNN.dim() != 3 or attention_BNN.shape[1] != attention_BNN.shape[2] or not attention_BNN.shape[1]:
        raise ValueError(f"attention_BNN must have shape [B, N, N], N at least 1, got {list(attention_BNN.shape)}")
    if reader not in ("token", "mean"):
        raise ValueError(f"reader must be 'token' or 'mean', got {reader!r}")
    tokens = attention_BNN.shape[1]
    grid_size = math.isqrt(tokens)
    num_prefix_tokens = tokens - grid_size**2
    row_BN = attention_BNN[:, 0] if num_prefix_tokens and reader == "token" else attention_BNN.mean(1)
    return row_BN[:, num_prefix_tokens:].unflatten(1, (grid_size, grid_size))
