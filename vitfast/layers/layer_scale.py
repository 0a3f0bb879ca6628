"""LayerScale."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiplies each channel of a residual branch by a learned factor (Touvron et al., 2021, CaiT).

    Args:
        dim: number of channels C.
        initial: initial value of the factors.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """Scales ``x`` ``[..., C]``."""
        return x * self.gamma
