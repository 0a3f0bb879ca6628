"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch for whole samples in training (Huang et al., 2016).

    Kept samples are divided by the probability of being kept, so evaluation needs no factor.

    Args:
        rate: probability of dropping a sample's branch, 0 <= rate < 1.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    @property
    def active(self) -> bool:
        """Whether ``forward`` would change its input."""
        return self.training and self.rate > 0.0

    def forward(self, branch: Tensor) -> Tensor:
        """Drops samples of ``branch`` ``[B, ...]``."""
        if not self.active:
            return branch
        keep = 1.0 - self.rate
        mask = branch.new_empty((branch.shape[0],) + (1,) * (branch.dim() - 1)).bernoulli_(keep)  # [B, 1, ...]
        return branch * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
