"""Weights annotated with their rounding, for models written as equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Round = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


class RoundedState(dict[str, Tensor]):
    """A state dict with the roundings of a format.

    Args:
        state: weights.
        operand: rounds what linear layers and LayerNorms read, the weights of linear layers among it.
        result: rounds what linear layers and LayerNorms write.
        stored: rounds what additions and concatenations write.
        gamma: rounds the weights of LayerNorms.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        operand: Round = _identity,
        result: Round = _identity,
        stored: Round = _identity,
        gamma: Round = _identity,
    ) -> None:
        super().__init__(state)
        self.operand, self.result, self.stored, self.gamma = operand, result, stored, gamma


def rounding_of(state: Mapping[str, Tensor]) -> RoundedState:
    """Returns the roundings of a state; of a plain one, none."""
    return state if isinstance(state, RoundedState) else RoundedState({})


def coarse(x: Tensor, mantissa_bits: int = 6) -> Tensor:
    """Rounds to few mantissa bits of any exponent, half to even, in x's own type; the gradient passes straight through.

    In float64, two ways to compute the same differ by far less than this rounds, so that they round alike.
    """
    mantissa, exponent = torch.frexp(x.detach())
    scale = 2.0 ** (mantissa_bits + 1)
    return x + (torch.ldexp((mantissa * scale).round() / scale, exponent) - x.detach())
