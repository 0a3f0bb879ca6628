"""Positional attention of ConViT: the scores depend only on the offset between two patches.

A head with weights w and bias b scores patch j = (x', y') from patch i = (x, y) on a G x G grid by the offset
dx = x' - x, dy = y' - y (d'Ascoli et al., 2021, section 3; the quadratic encoding is Cordonnier et al.'s, 2020):

    score = w · [dx, dy, dx² + dy²] + b = (w0 dx + w2 dx² + b/2) + (w1 dy + w2 dy² + b/2)

One term depends only on the columns x, x', the other only on the rows y, y'. The exponential turns the sum into a
product, and j runs over a full grid, so the softmax over j is the product of one softmax per axis:

    P[(y, x), (y', x')] = rows[y, y'] · columns[x, x']

So two [G, G] matrices replace the [N, N] probabilities of a head, and ``P v`` is two GEMMs over G = 14 patches (at 224
pixels) instead of one over N = 196. P does not depend on the images and is computed once per batch. The bias cancels in
the softmax: its gradient is zero up to rounding, and it is kept for checkpoints that contain it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positional_probabilities(weight: Tensor, bias: Tensor, grid_size: int) -> Tensor:
    """Computes the attention probabilities of every head along each axis of the grid.

    Args:
        weight: ``[H, 3 * L]``: for each head the weights of dx, dy and dx² + dy², each feature repeated L times. vissl
            has L = 10 and divides the score by L, which equals the mean over the repetitions.
        bias: ``[H]``, also divided by L.
        grid_size: patches along a side G.

    Returns:
        ``[2, H, G, G]``, rows that sum to 1: between columns, then between rows of patches; in float32, or float64
        for float64 weights. Half precision cannot resolve the scores of neighbouring patches.
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
    """Computes ``P v`` of the ``positional_probabilities`` and the values of the G * G patches, row by row.

    Returns:
        ``[B, G, G, H, D]``, rows and columns of patches, in the dtype of ``v_BNHD`` or of autocast; a view.
    """
    batch, _, _, head_dim = v_BNHD.shape
    grid_size = probabilities_2HGG.shape[-1]
    columns_HGG, rows_HGG = probabilities_2HGG.to(v_BNHD.dtype)
    sizes = (batch, grid_size, head_dim)
    # one GEMM per head and axis; Y rows and X columns of patches
    x_HXBYD = v_BNHD.unflatten(1, (grid_size, grid_size)).permute(3, 2, 0, 1, 4)
    x_HXBYD = torch.bmm(columns_HGG, x_HXBYD.flatten(2)).unflatten(2, sizes)
    x_HYBXD = torch.bmm(rows_HGG, x_HXBYD.transpose(1, 3).flatten(2)).unflatten(2, sizes)
    return x_HYBXD.permute(2, 1, 3, 0, 4)


def positional_map(probabilities_2HGG: Tensor) -> Tensor:
    """Returns P ``[H, N, N]``, the outer product of both axes."""
    columns_HGG, rows_HGG = probabilities_2HGG
    return (rows_HGG[:, :, None, :, None] * columns_HGG[:, None, :, None, :]).flatten(3).flatten(1, 2)
