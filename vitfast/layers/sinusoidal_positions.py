"""Fixed position embeddings."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoidal_positions(num_positions: int, dim: int) -> Tensor:
    """Tabulates the sinusoids of Vaswani et al. (2017, section 3.5), sine and cosine alternating over the channels.

    Channel j of position p is ``sin(p / 10000 ** (2 * (j // 2) / dim))``, the cosine where j is odd.

    Returns:
        ``[1, num_positions, dim]``, of torch's default type.
    """
    channels = torch.arange(dim, dtype=torch.float64)
    frequencies = 10000.0 ** -(2 * (channels // 2) / dim)
    angles = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1) * frequencies  # [num_positions, dim]
    table = torch.where(channels % 2 == 0, angles.sin(), angles.cos())
    return table.to(torch.get_default_dtype()).unsqueeze(0)
