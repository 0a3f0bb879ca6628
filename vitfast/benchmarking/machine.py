"""The machine that results were measured on, and its measured limits: arithmetic rate and copy bandwidth."""

from __future__ import annotations

import os
import re
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitfast.benchmarking.harness import Case, cache_sizes
from vitfast.benchmarking.table import Table
from vitfast.ops.library import has_kernel
from vitfast.runs.run_directory import describe_environment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# instruction sets relevant to GEMMs and rounding, under Linux's names (x86: flags, Arm: Features)
_INSTRUCTION_SETS = (
    "avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_bf16 amx_int8 amx_fp16 asimd asimdhp asimddp bf16 i8mm sve sve2"
).split()
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "VITFAST_ISA")

# far beyond a GPU's caches; on a CPU small enough for a dry run
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**24}
_MATRIX_SIZE = {"cuda": 8192, "cpu": 256}

# Shortest run of the arithmetic loop. A millisecond passes before every thread is awake, and another case's threads
# may spin for longer than that: such samples would mostly measure something other than arithmetic.
MIN_RUN_S = 0.05


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describes the machine, as JSON values, so that readers can judge and repeat the results."""
    described = describe_environment(device)
    kept = ("device", "platform", "python", "packages", "build_info")
    return {
        "date": described["started"],
        "cpu": {
            "model": described["cpu"],
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "threads": described["threads"],
            "instruction_sets": instruction_sets(),
            "caches_bytes": cache_sizes(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": _describe_gpu(device),
        "environment": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        **{name: described[name] for name in kept},
    }


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The relevant instruction sets of the first core; empty if the system does not report them."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return []
    present = set(found[1].split()) if found else set()
    return [name for name in _INSTRUCTION_SETS if name in present]


def busy_warning(load: float | None, cores: int) -> str | None:
    """Returns a warning if the load average at the start shows other work on the machine, else None."""
    if load is None or load <= max(0.5, 0.05 * cores):
        return None
    return (
        f"the machine is busy: a load of {load:.1f} over the last minute on {cores} core{'s' if cores != 1 else ''} "
        "before this benchmark began. Times are then too long; ratios within a round suffer less. "
        "Measure again when it is quiet."
    )


def with_limits(table: Table, device: torch.device) -> Table:
    """Adds the device's limits to the cases of a table, which then shows each case's share of them."""
    return replace(table, build=lambda built: [*table.build(built), *device_limits(device, table.precision)])


def device_limits(device: torch.device, precision: str) -> Sequence[Case]:
    """Returns a large copy and a large GEMM in a precision, a key of ``DTYPES``."""
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = _MATRIX_SIZE[device.type]
    # random numbers: they draw more power on a GPU than zeros, which lowers its clock
    left, right = torch.randn(2, size, size, device=device).to(DTYPES[precision])
    product = torch.empty_like(left)
    return [
        Case("device copy", lambda: target.copy_(source), is_limit=True, gigabyte=2e-9 * source.nbytes),
        Case("device matrix product", lambda: torch.mm(left, right, out=product), is_limit=True, gflop=2e-9 * size**3),
    ]


def arithmetic_peak(precision: str) -> Case | None:
    """Returns a loop of multiply-adds on registers over all of torch's threads: the processor's arithmetic limit.

    Returns None without vitfast's CPU library. The multiply-adds of ``"fp16_32"`` are in fp32.
    """
    if not has_kernel("packed", "cpu"):
        return None
    loop = partial(torch.ops.vitfast.fma_peak.default, "fp32" if precision == "fp16_32" else precision)
    iterations = iterations_of_a_run(loop)
    return Case("arithmetic peak", run=lambda: loop(iterations), is_limit=True, gflop=loop(iterations) * 1e-9)


def iterations_of_a_run(loop: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> int:
    """Returns how many iterations take at least ``MIN_RUN_S`` on an undisturbed machine.

    Disturbances lengthen a run and never shorten it, so that the fastest of several runs decides.
    """
    iterations = 10_000
    while min(timeit.repeat(partial(loop, iterations), timer=clock, number=1, repeat=4)) < MIN_RUN_S:
        iterations *= 2
    return iterations


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
