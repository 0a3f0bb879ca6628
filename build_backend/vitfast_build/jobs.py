"""How many compilers may run at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
CPP_JOB_BYTES = 3 * GIB // 2
CUDA_JOB_BYTES = 4 * GIB


@dataclass(frozen=True)
class Jobs:
    """The number of compilers at a time, and how many of them may be nvcc."""

    total: int
    cuda: int


def choose_jobs(max_jobs: int | None, cores: int, memory_bytes: int | None) -> Jobs:
    """Chooses as many jobs as the cores, the free memory and MAX_JOBS all allow, and at least one.

    Args:
        max_jobs: MAX_JOBS, or None.
        cores: cores that this process may use.
        memory_bytes: free memory, or None where it is unknown.
    """
    total = cores if max_jobs is None else min(cores, max_jobs)
    cuda = total
    if memory_bytes is not None:
        total = min(total, memory_bytes // CPP_JOB_BYTES)
        cuda = min(total, memory_bytes // CUDA_JOB_BYTES)
    return Jobs(max(1, total), max(1, cuda))


def usable_cores() -> int:
    """Counts the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(root: Path = Path("/")) -> int | None:
    """Reads the free memory in bytes: the machine's, or what is left of the container's limit if that is less."""
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    used = _read(root / "sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        # files that the container has read count as used, but are given back when memory is asked for
        cached = [
            int(line.split()[1])
            for line in _read(root / "sys/fs/cgroup/memory.stat").splitlines()
            if line.startswith("inactive_file ")
        ]
        found.append(max(0, int(limit) - int(used) + sum(cached)))
    return min(found) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
