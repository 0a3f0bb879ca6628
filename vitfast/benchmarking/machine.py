"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

import torch

from vitfast.benchmarking.cache_flush import cache_sizes
from vitfast.runs.environment import describe_environment

# instruction sets that matter to matrix products and rounding, as Linux names them (x86: flags, Arm: Features)
_INSTRUCTION_SETS = (
    "avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_bf16 amx_int8 amx_fp16 asimd asimdhp asimddp bf16 i8mm sve sve2"
).split()

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "VITFAST_ISA")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns what a reader needs to judge and repeat the figures; all of it can be written as JSON.

    Args:
        device: where the subjects run.
    """
    described = describe_environment(device)
    return {
        "date": described["started"],
        "cpu": {
            "model": described["cpu"],
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "instruction_sets": instruction_sets(),
            "caches_bytes": cache_sizes(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "memory_bytes": _memory_bytes(),
        "load_average": load_average(),
        "device": described["device"],
        "gpu": _describe_gpu(device),
        "platform": described["platform"],
        "python": described["python"],
        "packages": described["packages"] | {"timm": _version("timm")},
        "environment": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "build_info": described["build_info"],
    }


def usable_cores() -> int:
    """Number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The instruction sets of the first core that matter here; empty where the system does not tell."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return []
    present = set(found[1].split()) if found else set()
    return [name for name in _INSTRUCTION_SETS if name in present]


def load_average() -> float | None:
    """Processes that ran or waited over the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def busy_warning(load: float | None, cores: int) -> str | None:
    """Says that others use the machine, or None when it is quiet enough to be measured.

    Args:
        load: the load average when the benchmark started.
        cores: what this process may use.
    """
    if load is None or load <= max(0.5, 0.05 * cores):
        return None
    return (
        f"the machine is busy: a load of {load:.1f} over the last minute on {cores} core{'s' if cores != 1 else ''} "
        "before this benchmark began. Times are then too long; ratios within a round suffer less. "
        "Measure again when it is quiet."
    )


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _describe_gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
