"""Resampling of token grids in the Dynamic Vision Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.ops.autocast import keep_float32


def axis_upsample_matrix(from_size: int, to_size: int) -> Tensor:
    """Returns the matrix that resamples one axis of a grid as the Dynamic Vision Transformer does (Wang et al., 2021).

    The original code repeats each element until at least ``to_size`` is reached (nearest-neighbour interpolation, from
    7 to 14 and from 10 to 20) and reduces the result by adaptive average pooling (to 10 and to 14). Both steps are
    linear and separable, so one matrix per axis suffices.

    Returns:
        ``[to_size, from_size]``, of torch's default dtype; rows sum to 1.

    Raises:
        ValueError: a size is below 1.
    """
    for name, size in (("from_size", from_size), ("to_size", to_size)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    repeated = torch.eye(from_size, dtype=torch.float64).repeat_interleave(-(-to_size // from_size), dim=1)
    columns = F.adaptive_avg_pool1d(repeated.unsqueeze(0), to_size)[0]
    return columns.t().to(torch.get_default_dtype()).contiguous()


class GridUpsample(nn.Module):
    """Resamples features or relations of a class token and a square grid of tokens to a finer grid.

    With r = ``axis_upsample_matrix``, R = r ⊗ r resamples the grid and P = blockdiag(1, R) keeps the class token.

    Args:
        from_grid: tokens g along a side of the coarse grid.
        to_grid: tokens G along a side of the fine grid.
    """

    matrix: Tensor  # P, [1 + G * G, 1 + g * g]

    def __init__(self, from_grid: int, to_grid: int) -> None:
        super().__init__()
        axis = axis_upsample_matrix(from_grid, to_grid)
        matrix = torch.block_diag(torch.ones(1, 1), torch.kron(axis, axis))
        # computed from the sizes, so it is not saved
        self.register_buffer("matrix", matrix, persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """Resamples features ``[B, 1 + g * g, C]`` to ``[B, 1 + G * G, C]``; the class token's are zero."""
        with keep_float32(x):
            return F.pad(self.matrix[1:, 1:] @ x[:, 1:], (0, 0, 1, 0))

    def relations(self, x: Tensor) -> Tensor:
        """Resamples relations ``[B, C, 1 + g * g, 1 + g * g]`` to ``[B, C, 1 + G * G, 1 + G * G]``: P x Pᵀ."""
        with keep_float32(x):
            return ops.upsample_relations(x, self.matrix)
