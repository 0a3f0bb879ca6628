"""The residual addition, fused with the LayerNorm or the MLP next to it."""

from __future__ import annotations

from torch import Tensor

from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.stored_result import StoredResult


class ResidualAdd(StoredResult):
    """Adds a branch to the residual stream ``[B, N, C]``."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Computes ``x + branch``."""
        return x + branch

    def add_and_normalize(self, x: Tensor, branch: Tensor, norm: LayerNorm) -> tuple[Tensor, Tensor]:
        """Computes ``x + branch`` and its LayerNorm in one pass over memory."""
        return norm.add(branch, x)

    def add_mlp(self, x: Tensor, normalized: Tensor, mlp: Mlp) -> Tensor:
        """Computes ``x + mlp(normalized)``, with the addition in the operator of the MLP."""
        added: Tensor = mlp(normalized, residual=x)
        return added
