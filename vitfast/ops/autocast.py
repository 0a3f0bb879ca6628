"""Behaviour of the operators under ``torch.autocast``; torch.library's registration supports a single dtype only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

MaybeTensor = TypeVar("MaybeTensor", Tensor, "Tensor | None")


def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# torch.compile calls it instead of tracing it, which torch 2.11 cannot
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes GEMMs on this tensor's device; None: autocast is off.

    As in torch's own autocast rules, float64 is not cast.
    """
    device_type = tensor.device.type
    if tensor.dtype == torch.float64 or not _has_autocast(device_type):
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def cast(tensor: MaybeTensor, dtype: torch.dtype | None) -> MaybeTensor:
    """Casts a tensor; a no-op if the tensor or the dtype is None."""
    return tensor if tensor is None or dtype is None else tensor.to(dtype)


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """Returns a context in which autocast is off for the device of ``x``."""
    device_type = x.device.type
    if not _has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def keep_float32(x: Tensor) -> AbstractContextManager[Any]:
    """Returns a context in which autocast is off if ``x`` is float32.

    Under autocast a linear layer returns autocast's type, but a quantized one returns float32. The next operators must
    not round its result again.
    """
    return autocast_off(x) if x.dtype == torch.float32 else nullcontext()
