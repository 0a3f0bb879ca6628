"""Where and in which arithmetic a model runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from vitfast.errors import UserError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(name: str) -> torch.device:
    """Turns ``auto``, ``cpu`` or ``cuda`` into a device.

    Args:
        name: ``auto`` is the GPU if there is one, otherwise the CPU.

    Raises:
        UserError: if ``cuda`` is asked for and torch sees no GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda was asked for, but torch sees no CUDA GPU here; use device=cpu or device=auto")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The arithmetic of forward passes: plain ``fp32``, or ``torch.autocast`` to ``bf16`` or ``fp16``."""
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given, so that a clock read afterwards tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_device(device: torch.device) -> str:
    """One phrase for the log: the GPU's name, or the CPU and its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''}"
