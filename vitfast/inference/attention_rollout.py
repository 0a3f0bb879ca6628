"""Attention rollout through all layers, and the layout of attention on the patch grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def attention_rollout(maps: Sequence[Tensor]) -> Tensor:
    """Multiplies the attention of all layers (Abnar and Zuidema, 2020).

    With A the attention of a layer averaged over its heads, and Â = A + I with rows normalized to 1 (I for the
    residual connection), the rollout of K layers is Â_K … Â_2 Â_1. Its entry [i, j] is the share of input token j in
    token i after the last layer.

    Tokens may join before the others in later layers, like the class token of a ConViT. Until then a joining token
    depends on itself only: the rollout is extended by rows and columns of the identity, so the column of the class
    token is the share that is the same for every image.

    Args:
        maps: from ``attention_maps``, first layer first: ``[B, H, N, N]`` each. For a model with exits, the layers of
            one exit; what it reuses of the exit before is not followed.

    Returns:
        ``[B, N, N]`` for the tokens of the last layer, rows sum to 1; float32, or float64 for float64 maps.

    Raises:
        ValueError: there are no maps, or a shape does not fit the one before.
    """
    if not maps:
        raise ValueError("maps must hold the attention maps of at least one layer, got none")
    rollout_BNN = None
    for index, map_BHNN in enumerate(maps):
        if map_BHNN.dim() != 4 or map_BHNN.shape[2] != map_BHNN.shape[3]:
            raise ValueError(f"maps[{index}] must have shape [B, H, N, N], got {list(map_BHNN.shape)}")
        attention_BNN = map_BHNN.to(torch.promote_types(map_BHNN.dtype, torch.float32)).mean(1)
        attention_BNN = attention_BNN + torch.eye(attention_BNN.shape[1]).to(attention_BNN)
        attention_BNN = attention_BNN / attention_BNN.sum(-1, keepdim=True)
        if rollout_BNN is None:
            rollout_BNN = attention_BNN
            continue
        joining = attention_BNN.shape[1] - rollout_BNN.shape[1]
        if joining < 0 or attention_BNN.shape[0] != rollout_BNN.shape[0]:
            raise ValueError(
                f"maps[{index}] has shape {list(map_BHNN.shape)}, the map before it {list(maps[index - 1].shape)}: "
                "they must be of the same images, and no token may get lost; for a model with exits pass one exit's"
            )
        if joining:
            joined_BNN = torch.eye(attention_BNN.shape[1]).to(rollout_BNN).repeat(attention_BNN.shape[0], 1, 1)
            joined_BNN[:, joining:, joining:] = rollout_BNN
            rollout_BNN = joined_BNN
        rollout_BNN = attention_BNN @ rollout_BNN
    assert rollout_BNN is not None
    return rollout_BNN


def attention_grid(attention_BNN: Tensor, *, reader: Literal["token", "mean"] = "token") -> Tensor:
    """Arranges the attention that reaches the model's head on the patch grid.

    The patches are the last G * G tokens, for the largest G that fits; class and distillation tokens precede them.

    Args:
        attention_BNN: ``[B, N, N]``: an attention map of one head or their mean, or ``attention_rollout``'s result.
        reader: the queries: the class ``"token"``, the first; or the ``"mean"`` of all tokens, for a model whose head
            reads it (the field ``pooling``). Without a class token, as in the first layers of a ConViT, it is always
            the mean: the attention that each patch receives.

    Returns:
        ``[B, G, G]``, rows from top to bottom. Attention to the prefix tokens is dropped, so the sum is at most 1.

    Raises:
        ValueError: the shape or ``reader`` is invalid.
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
