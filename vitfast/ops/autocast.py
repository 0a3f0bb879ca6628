"""How operators behave under ``torch.autocast``: one helper, because torch's registration fixes a single dtype."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import torch
from torch import Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The type that autocast wants products on this tensor's device to be computed in, or None when it is off.

    float64 is left alone, as torch's own autocast rules do.
    """
    device_type = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.amp.is_autocast_available(device_type):
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


@overload
def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor: ...
@overload
def cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None: ...
def cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """Casts unless there is nothing to cast or nothing to cast to."""
    return tensor if tensor is None or dtype is None else tensor.to(dtype)


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """Returns a context in which autocast is off for the device of ``x``."""
    device_type = x.device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def keep_float32(x: Tensor) -> AbstractContextManager[Any]:
    """Returns a context in which autocast is off if ``x`` is float32.

    Under autocast a linear layer returns autocast's type, but a quantized one returns float32. The next operators must
    not round its result again.
    """
    return autocast_off(x) if x.dtype == torch.float32 else nullcontext()
