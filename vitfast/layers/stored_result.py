"""Results that a model stores between layers: joined tokens, tokens with positions, reused features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
    """Identity on resampled features."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` ``[B, N, C]``."""
        return x
