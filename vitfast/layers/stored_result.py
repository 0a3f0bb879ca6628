"""Leaf modules without parameters for results that a model stores: residual sums, joined tokens, added positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import GatedMlp, Mlp


class StoredResult(nn.Module):
    """Base class for modules without parameters whose result is stored between layers.

    They are modules so that ``vitfast.quantize_`` can round their results like those of any other layer. The
    configuration of a stored result is that of the module that contains it. Parameters are passed to them by keyword:
    in inference mode torch's ``FlopCounterMode`` fails on a parameter that is a positional argument of a module.
    """

    def stored(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Rounds the result if the module is quantized, in place if nothing else reads ``x``."""
        return x


class JoinTokens(StoredResult):
    """Concatenates tokens along the sequence."""

    def forward(self, tokens: Tensor, *, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
        """Joins ``before`` ``[1, T, C]``, ``tokens`` ``[B, N, C]``, ``after`` ``[1, U, C]``: ``[B, T + N + U, C]``."""
        parts = [part for part in (before, tokens, after) if part is not None]
        joined = torch.cat([part.expand(tokens.shape[0], -1, -1) for part in parts], dim=1)
        return self.stored(joined, in_place=True)


class AddPositions(StoredResult):
    """Adds position embeddings to tokens."""

    def forward(self, tokens: Tensor, *, positions: Tensor) -> Tensor:
        """Adds ``positions`` ``[1, N, C]`` to ``tokens`` ``[B, N, C]``."""
        return self.stored(tokens + positions, in_place=True)


class StoredFeatures(StoredResult):
    """Identity on resampled features ``[B, N, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.stored(x)


class ResidualAdd(StoredResult):
    """Adds a branch to the residual stream ``[B, N, C]``, fused with the LayerNorm or the MLP next to it."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Computes ``x + branch``."""
        return self.stored(x + branch, in_place=True)

    @property
    def round_sum(self) -> Callable[[Tensor], Tensor] | None:
        """The rounding of ``stored``."""
        return None

    def add_and_normalize(self, x: Tensor, branch: Tensor, norm: LayerNorm) -> tuple[Tensor, Tensor]:
        """Computes ``x + branch`` and its LayerNorm, in one pass over memory where possible."""
        fused = norm.fused_add(branch, x, self.round_sum)
        if fused is not None:
            return fused
        x = self(x, branch)
        return x, norm(x)

    def add_mlp(self, x: Tensor, normalized: Tensor, mlp: Mlp | GatedMlp) -> Tensor:
        """Computes ``x + mlp(normalized)``, with the addition in the operator of the MLP."""
        added: Tensor = mlp(normalized, residual=x)
        return added
