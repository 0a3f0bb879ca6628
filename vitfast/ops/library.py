"""Loads the compiled libraries and says which kernels are active and why."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import vitfast

# operator -> its raw operators in torch.ops.vitfast
CPU_KERNELS = (
    "attention",
    "gated_positional_attention",
    "layer_norm",
    "linear",
    "matmul_accumulate",
    "mlp",
    "packed",
    "quantize_fixed",
    "quantize_float",
    "upsample_relations",
)
CUDA_KERNELS = (
    "attention",
    "gated_positional_attention",
    "layer_norm",
    "linear",
    "matmul_accumulate",
    "matmul_half_sums",  # matmul_accumulate on tensor cores, which only whoever asks for it gets
    "mlp",
    "quantize_fixed",
    "quantize_float",
    "upsample_relations",
)

# CUDA kernels that a committed GPU result under benchmarks/results/ covers
PROVEN_CUDA_KERNELS: frozenset[str] = frozenset()

CUDA_KERNEL_CHOICES = ("proven", "all", "none")
ISA_CHOICES = ("auto", "baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")


def _environment_choice(variable: str, choices: tuple[str, ...]) -> str:
    """Reads an environment variable that takes one of ``choices`` (the first is the default)."""
    value = os.environ.get(variable, "") or choices[0]
    if value not in choices:
        raise ValueError(f"{variable}={value!r} is not known; allowed: {', '.join(choices)}")
    return value


def _load(name: str) -> str | None:
    """Loads a library of this package; returns why it is not there, or None."""
    candidates = [Path(folder) / f"lib{name}.so" for folder in vitfast.__path__]
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        return "not built"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load under torch {torch.__version__} (vitfast needs torch >= 2.11): {error}\n"
            "Build it again for this torch: pip install --force-reinstall --no-deps --no-build-isolation ."
        ) from error
    return None


_cuda_kernels = _environment_choice("VITFAST_CUDA_KERNELS", CUDA_KERNEL_CHOICES)
_isa = _environment_choice("VITFAST_ISA", ISA_CHOICES)  # csrc/cpu/dispatch.cpp reads it, too
_cpu_missing = _load("vitfast_cpu")
_cuda_missing: str | None = "this torch has no CUDA"
if torch.version.cuda is not None:
    _cuda_missing = _cpu_missing or _load("vitfast_cuda")

if _cpu_missing is None:
    # a wrong VITFAST_ISA is told here, once, and not by the first operator that runs
    torch.ops.vitfast.cpu_capability()


def missing_kernel(kernel: str, device_type: str) -> str | None:
    """Says why there is no kernel of vitfast for an operator on ``"cpu"`` or ``"cuda"``; None where there is one."""
    if device_type == "cuda" and kernel not in CUDA_KERNELS:
        return "no CUDA kernel yet"
    if device_type != "cuda" and kernel not in CPU_KERNELS:
        return "on CUDA only"
    library, missing = ("cuda", _cuda_missing) if device_type == "cuda" else ("cpu", _cpu_missing)
    return None if missing is None else f"libvitfast_{library}.so: {missing}"


def _cuda_state(kernel: str) -> str:
    """Says why a CUDA kernel is active or not."""
    missing = missing_kernel(kernel, "cuda")
    if missing is not None:
        return f"torch: {missing}"
    if _cuda_kernels == "none":
        return "torch: VITFAST_CUDA_KERNELS=none"
    if _cuda_kernels == "proven" and kernel not in PROVEN_CUDA_KERNELS:
        return "torch: no committed GPU result covers the kernel; VITFAST_CUDA_KERNELS=all uses it all the same"
    return "vitfast"


def _cpu_state(kernel: str) -> str:
    missing = missing_kernel(kernel, "cpu")
    return "vitfast" if missing is None else f"torch: {missing}"


_KERNELS = sorted({*CPU_KERNELS, *CUDA_KERNELS})
_STATES: dict[tuple[str, str], str] = {}
for _kernel in _KERNELS:
    _STATES[_kernel, "cpu"] = _cpu_state(_kernel)
    _STATES[_kernel, "cuda"] = _cuda_state(_kernel)
    _STATES[_kernel, "meta"] = _STATES[_kernel, "cpu"]
_ACTIVE: dict[tuple[str, str], bool] = {key: state == "vitfast" for key, state in _STATES.items()}


def has_kernel(kernel: str, device_type: str) -> bool:
    """True where vitfast's own kernel runs for this operator on this type of device."""
    return _ACTIVE.get((kernel, device_type), False)


def kernel_state(kernel: str, device_type: str) -> str:
    """``"vitfast"`` or ``"torch: <why>"``, as ``build_info`` has it."""
    return _STATES[kernel, device_type]


def has_shared_memory(device: torch.device, num_bytes: int) -> bool:
    """Whether a thread block can allocate ``num_bytes`` of shared memory on a CUDA device."""
    # not every release of torch declares the attribute in its stubs
    largest: int = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin")  # noqa: B009
    return num_bytes <= largest


@contextmanager
def kernel_states(states: Mapping[tuple[str, str], str]) -> Iterator[None]:
    """Replaces for a while which kernels run, in the whole process.

    Args:
        states: (operator, type of device) -> ``"vitfast"``, where the kernel is loaded, or ``"torch: <why>"``.
    """
    before = {key: _STATES[key] for key in states}
    _set_states(states)
    try:
        yield
    finally:
        _set_states(before)


def _set_states(states: Mapping[tuple[str, str], str]) -> None:
    for key, state in states.items():
        _STATES[key], _ACTIVE[key] = state, state == "vitfast"


def build_info() -> dict[str, Any]:
    """Tells what was built, for what, and which kernels run and why.

    Returns:
        A dict that can be written as JSON: versions; ``cpu`` (the instruction set in use, what the processor has);
        ``cuda``; ``build`` (compilers, instruction sets and architectures compiled in, or why there are none);
        ``kernels``: for each operator and device, ``"vitfast"`` or ``"torch: <why>"``.
    """
    try:
        build = dict(importlib.import_module("vitfast._build_config").BUILD)
    except ModuleNotFoundError:
        build = {"reason": "vitfast was not built: pip install . compiles its kernels"}
    features = {}
    try:
        extension = importlib.import_module("vitfast._C")
    except ModuleNotFoundError:
        pass  # the libraries do not depend on the version of Python; this module does
    else:
        build["extension"] = extension.build_info()
        features = extension.cpu_features()
    capability = torch.ops.vitfast.cpu_capability() if _cpu_missing is None else "none: pure PyTorch"
    return {
        "vitfast": vitfast.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpu": {
            "instruction_set": capability,
            "requested": _isa,
            "library": _cpu_missing or "loaded",
            "features": sorted(name for name, present in features.items() if present),
        },
        "cuda": {"library": _cuda_missing or "loaded", "kernels_requested": _cuda_kernels},
        "build": build,
        "kernels": {kernel: {device: _STATES[kernel, device] for device in ("cpu", "cuda")} for kernel in _KERNELS},
    }
