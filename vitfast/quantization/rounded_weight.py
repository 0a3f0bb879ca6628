"""A cache of rounded weights, valid while their parameters do not change."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.quantization.rounders import Rounder

_NAME = "_kept_rounded_weight"


class _Kept:
    """A rounded weight and its key. Copies and pickles are empty."""

    def __init__(self) -> None:
        self.parameter: weakref.ref[Tensor] | None = None
        self.made_of: tuple[Any, ...] = ()
        self.rounded: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


def rounded_weight(layer: nn.Module, weight: Tensor, rounder: Rounder) -> Tensor:
    """Rounds a layer's weight, or returns the result of an earlier call if the parameter has not changed.

    Nothing is cached while gradients are recorded. A change is detected by the parameter's version counter, which every
    in-place operator increments; a write through ``parameter.data`` does not.

    Args:
        layer: holds the parameter as ``weight``.
        weight: the parameter, or a view of it.
        rounder: the rounding.
    """
    parameter: Any = layer.weight
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or parameter.is_inference():
        layer.__dict__.pop(_NAME, None)
        return rounder(weight)
    kept: _Kept = layer.__dict__.setdefault(_NAME, _Kept())
    made_of = (parameter._version, parameter.data_ptr(), parameter.dtype, weight.shape, rounder)
    is_same = kept.parameter is not None and kept.parameter() is parameter and kept.made_of == made_of
    if kept.rounded is None or not is_same:
        kept.parameter, kept.made_of, kept.rounded = weakref.ref(parameter), made_of, rounder(weight)
    return kept.rounded
