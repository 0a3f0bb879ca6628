"""Leaf modules without parameters for results that a model stores: residual sums, joined tokens, added positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp


class StoredResult(nn.Module):
    """Base class for modules without parameters whose result is stored between layers.

    They are modules so that ``vitfast.quantize_`` can round their results like those of any other layer. The
    configuration of a stored result is that of the module that contains it.
    """


class JoinTokens(StoredResult):
    """Concatenates tokens along the sequence."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Joins ``first`` ``[B, T, C]`` and ``second`` ``[B, N, C]`` to ``[B, T + N, C]``.

        One of them may be a parameter with batch size 1, which is expanded.
        """
        batch = second.shape[0] if first.shape[0] == 1 else first.shape[0]
        return torch.cat([first.expand(batch, -1, -1), second.expand(batch, -1, -1)], dim=1)


class AddPositions(StoredResult):
    """Adds position embeddings to tokens."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Adds ``positions`` ``[1, N, C]`` to ``tokens`` ``[B, N, C]``."""
        return tokens + positions


class StoredFeatures(StoredResult):
    """Identity on resampled features ``[B, N, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class ResidualAdd(StoredResult):
    """Adds a branch to the residual stream ``[B, N, C]``, fused with the LayerNorm or the MLP next to it."""

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
