"""Device selection, autocast and synchronization."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from vitfast.errors import UserError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(name: str) -> torch.device:
    """Returns the device for ``auto``, ``cpu`` or ``cuda``.

    Args:
        name: ``auto`` is the GPU if there is one, otherwise the CPU.

    Raises:
        UserError: if ``cuda`` is requested and torch sees no GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda was requested, but torch sees no CUDA GPU; use device=cpu or device=auto")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Returns the context of forward passes: no-op for ``fp32``, ``torch.autocast`` for ``bf16`` or ``fp16``."""
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device computes faster with bfloat16 than with float32.

    Intel's AVX512_BF16 without AMX takes twice the time of float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("x86_64", "AMD64"):
        is_supported = torch.cpu._is_avx512_bf16_supported()
        return bool(torch.cpu._is_amx_tile_supported() or (is_supported and "Intel" not in cpu_model()))
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_model() -> str:
    """Returns the name of the processor, or its architecture if the system has none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Waits for all work on the device, before the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_device(device: torch.device) -> str:
    """Returns the name of the GPU, or the number of CPU threads, for the log."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''}"
