"""The seed of stochastic rounding, as the raw operators take it."""

from __future__ import annotations

import torch
from torch import Tensor


def seed_tensor(seed: int | Tensor | None, x: Tensor) -> Tensor:
    """Returns the seed as one int64 on x's device; None draws it from torch's generator.

    Raises:
        TypeError: it is neither an integer nor an int64 scalar.
        ValueError: it is negative, or needs more than 63 bits.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(f"seed must be one int64, got {seed.dtype} of shape {list(seed.shape)}")
        return seed.to(x.device)
    if seed is None:
        return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=x.device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, an int64 tensor or None, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=x.device)
