"""Attention by position alone, as ConViT's heads have it: where to look follows from the offset between two patches.

A head with weights w and bias b scores patch j = (x', y') from patch i = (x, y) on a G x G grid by the offset
dx = x' - x, dy = y' - y (d'Ascoli et al., 2021, section 3; the quadratic encoding is Cordonnier et al.'s, 2020):

    score = w · [dx, dy, dx² + dy²] + b = (w0 dx + w2 dx² + b/2) + (w1 dy + w2 dy² + b/2)

One part depends on the columns x, x' only, the other on the rows y, y' only. The exponential turns the sum into a
product, and j runs over a full grid, so that the softmax over j, too, is a product, of one softmax for each axis:

    P[(y, x), (y', x')] = rows[y, y'] · columns[x, x']

So the [N, N] probabilities of a head are never needed: two [G, G] matrices say it all, and ``P v`` is two products over
G = 14 patches (at 224 pixels) instead of one over N = 196. P depends on no image and is computed once for the batch.
The bias cancels in the softmax: its gradient is zero up to rounding, and it is kept for the checkpoints that have it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positional_probabilities(weight: Tensor, bias: Tensor, grid_size: int) -> Tensor:
    """Computes how every head attends along each axis of the grid.

    Args:
        weight: ``[H, 3 * L]``: for each head the weights of dx, dy and dx² + dy², each feature repeated L times. vissl
            has L = 10 and divides the score by L, which is the mean over the repetitions taken here.
        bias: ``[H]``, divided by L, too.
        grid_size: patches along a side G.

    Returns:
        ``[2, H, G, G]``, rows that sum to 1: between columns, then between rows of patches; in float32, or in float64
        for such weights. Half precision could not tell the scores of neighbouring patches apart.
    """
    precise = torch.promote_types(weight.dtype, torch.float32)
    repetitions = weight.shape[1] // 3
    weight_H3 = weight.to(precise).unflatten(1, (3, repetitions)).mean(2)
    bias_H11 = (bias.to(precise) / repetitions)[:, None, None]

    patches = torch.arange(grid_size, device=weight.device, dtype=precise)
    offset_GG = patches[None, :] - patches[:, None]
    linear_2H11 = weight_H3[:, :2].t()[:, :, None, None]
    square_H11 = weight_H3[:, 2, None, None]
    scores_2HGG = linear_2H11 * offset_GG + (square_H11 * offset_GG.square() + bias_H11 / 2)
    return scores_2HGG.softmax(-1)


def attend_by_position(probabilities_2HGG: Tensor, v_BNHD: Tensor) -> Tensor:
    """Computes ``P v`` for all images at once.

    Args:
        probabilities_2HGG: of ``positional_probabilities``.
        v_BNHD: the values of the G * G patches, row by row.

    Returns:
        ``[B, G, G, H, D]``, rows and columns of patches, in the type of ``v_BNHD``, or in autocast's: a view, so that
        who reads it once need not copy it.
    """
    batch, _, _, head_dim = v_BNHD.shape
    grid_size = probabilities_2HGG.shape[-1]
    columns_HGG, rows_HGG = probabilities_2HGG.to(v_BNHD.dtype)
    sizes = (batch, grid_size, head_dim)
    # one matrix product a head and axis; Y rows and X columns of patches
    x_HXBYD = v_BNHD.unflatten(1, (grid_size, grid_size)).permute(3, 2, 0, 1, 4)
    x_HXBYD = torch.bmm(columns_HGG, x_HXBYD.flatten(2)).unflatten(2, sizes)
    x_HYBXD = torch.bmm(rows_HGG, x_HXBYD.transpose(1, 3).flatten(2)).unflatten(2, sizes)
    return x_HYBXD.permute(2, 1, 3, 0, 4)


def positional_map(probabilities_2HGG: Tensor) -> Tensor:
    """Multiplies the axes out to P ``[H, N, N]``, for what needs every probability."""
    columns_HGG, rows_HGG = probabilities_2HGG
    return (rows_HGG[:, :, None, :, None] * columns_HGG[:, None, :, None, :]).flatten(3).flatten(1, 2)
