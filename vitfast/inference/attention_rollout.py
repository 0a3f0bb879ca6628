"""Attention rollout: from which patches the result of all layers together comes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_rollout(maps: Sequence[Tensor]) -> Tensor:
    """Multiplies the attention of all layers through (Abnar and Zuidema, 2020).

    A layer gives a token half its attention's mixture, averaged over the heads, and half itself, for the residual
    connection. With A the average and Â = (A + I), divided by its row sums, the rollout of K layers is Â_K … Â_2 Â_1:
    its entry [i, j] is the share of input token j in what token i is after the last layer.

    Tokens may join on the way, before all others, as the class token of a ConViT before its last blocks. Until then
    such a token is itself alone: to the rollout so far it adds rows and columns of the identity. The column of the
    class token is then the share of what is the same for every image.

    Args:
        maps: of ``attention_maps``, the first layer first: ``[B, H, N, N]`` each. Of a model with exits, the layers of
            one exit: what it takes from the exit before is not followed.

    Returns:
        ``[B, N, N]`` for the tokens of the last layer, rows that sum to 1; in float32, or in float64 for such maps.

    Raises:
        ValueError: there are no maps, one has another shape, or they do not follow each other.
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
                "they must be of the same images, and no token may get lost; of a model with exits give one exit's"
            )
        rollout_BNN = attention_BNN @ _join(rollout_BNN, joining)
    assert rollout_BNN is not None
    return rollout_BNN


def _join(rollout_BNN: Tensor, joining: int) -> Tensor:
    """Puts tokens before the others, each of which comes from itself alone."""
    if not joining:
        return rollout_BNN
    batch, tokens, _ = rollout_BNN.shape
    joined = torch.eye(joining + tokens).to(rollout_BNN).repeat(batch, 1, 1)
    joined[:, joining:, joining:] = rollout_BNN
    return joined
