"""Pushes everything out of the caches, so that a run reads its inputs from memory."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CPU_CACHE_BYTES = 64 * 2**20
# several times the L2 of any GPU of today (H200: 50 MB, B200: 126 MB); DeepGEMM and FlashMLA write as much
_CUDA_FLUSH_BYTES = 512 * 2**20


class CacheFlush:
    """Writes over a buffer that is larger than the caches.

    Args:
        device: whose caches.
        size_bytes: of the buffer; None takes twice the CPU's last-level cache, or 512 MiB on a GPU.
    """

    def __init__(self, device: torch.device, size_bytes: int | None = None) -> None:
        if size_bytes is None:
            size_bytes = _CUDA_FLUSH_BYTES if device.type == "cuda" else 2 * last_level_cache_bytes()
        self._buffer = torch.zeros(max(size_bytes // 8, 1), dtype=torch.int64, device=device)

    def __call__(self) -> None:
        """Reads and writes the whole buffer."""
        self._buffer.add_(1)


def last_level_cache_bytes(folder: Path = _CPU_CACHES) -> int:
    """Size of the largest cache of the first core in bytes; 64 MiB where the system does not tell."""
    return max(cache_sizes(folder).values(), default=_UNKNOWN_CPU_CACHE_BYTES)


def cache_sizes(folder: Path = _CPU_CACHES) -> dict[str, int]:
    """The first core's data caches: ``{"L1": bytes, "L2": …}``; empty where the system does not tell.

    Args:
        folder: Linux's description of them.
    """
    sizes = {}
    for entry in sorted(folder.glob("index*")):
        try:
            kind, level, size = ((entry / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        number = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and number:
            sizes[f"L{level}"] = int(number[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[number[2]]
    return sizes
