"""Loads the native libraries and selects the active kernels: vitfast's or torch's operators."""

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
from vitfast.errors import UserError

# operators with a kernel
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
CPU_ONLY = ("packed",)
CUDA_KERNELS = (
    *(kernel for kernel in CPU_KERNELS if kernel not in CPU_ONLY),
    "matmul_fp16_accumulation",  # matmul_accumulate(unit="tensor_core")
)
# kernels that ops.kernels selects; models that use the packed kernels hold packed weights, which rules out a choice
KERNELS = tuple(kernel for kernel in CPU_KERNELS if kernel != "packed")

# CUDA kernels covered by a committed GPU result under benchmarks/results/
PROVEN_CUDA_KERNELS: frozenset[str] = frozenset()

CUDA_KERNEL_CHOICES = ("proven", "all", "none")
ISA_CHOICES = ("auto", "baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")


def _environment_choice(variable: str, choices: tuple[str, ...]) -> str:
    """Reads an environment variable with one of ``choices``; the first is the default."""
    value = os.environ.get(variable, "") or choices[0]
    if value not in choices:
        raise ValueError(f"{variable}={value!r} is not known; allowed: {', '.join(choices)}")
    return value


def _load(name: str) -> str | None:
    """Loads a library of this package; returns the reason if it is missing."""
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
_isa = _environment_choice("VITFAST_ISA", ISA_CHOICES)  # csrc/cpu/dispatch.cpp reads it as well
_cpu_missing = _load("vitfast_cpu")
_cuda_missing: str | None = "this torch has no CUDA"
if torch.version.cuda is not None:
    _cuda_missing = _cpu_missing or _load("vitfast_cuda")

if _cpu_missing is None:
    # reports an invalid VITFAST_ISA at import rather than in the first operator that runs
    torch.ops.vitfast.cpu_capability()


def is_loaded() -> bool:
    """Whether the CPU library, which defines all schemas, is loaded."""
    return _cpu_missing is None


def missing_kernel(kernel: str, device_type: str) -> str | None:
    """Returns why vitfast has no kernel for an operator on ``"cpu"`` or ``"cuda"``; None if it has one."""
    if device_type == "cuda" and kernel not in CUDA_KERNELS:
        return "no CUDA kernel yet"
    if device_type != "cuda" and kernel not in CPU_KERNELS:
        return "on CUDA only"
    library, missing = ("cuda", _cuda_missing) if device_type == "cuda" else ("cpu", _cpu_missing)
    return None if missing is None else f"libvitfast_{library}.so: {missing}"


def _initial_state(kernel: str, device_type: str) -> str:
    missing = missing_kernel(kernel, device_type)
    if missing is not None:
        return f"torch: {missing}"
    if device_type == "cuda" and _cuda_kernels == "none":
        return "torch: VITFAST_CUDA_KERNELS=none"
    if device_type == "cuda" and _cuda_kernels == "proven" and kernel not in PROVEN_CUDA_KERNELS:
        return "torch: no committed GPU result covers the kernel; VITFAST_CUDA_KERNELS=all uses it nevertheless"
    return "vitfast"


_STATES: dict[tuple[str, str], str] = {
    (kernel, device_type): _initial_state(kernel, device_type)
    for kernel in sorted({*CPU_KERNELS, *CUDA_KERNELS})
    for device_type in ("cpu", "cuda", "meta")
}


def has_kernel(kernel: str, device_type: str) -> bool:
    """Whether vitfast's kernel runs for this operator on this type of device; none does in an export to ONNX."""
    return _STATES.get((kernel, device_type)) == "vitfast" and not is_onnx_export()


def is_onnx_export() -> bool:
    """Whether ``torch.onnx.export`` runs, which knows only torch's operators."""
    is_traced = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced and torch.onnx.is_in_onnx_export()


# as torch.compiler.assume_constant_result, which imports torch._dynamo; Dynamo takes is_in_onnx_export for False
is_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel_state(kernel: str, device_type: str) -> str:
    """Returns ``"vitfast"`` or ``"torch: <reason>"``, as in ``build_info``."""
    return _STATES[kernel, device_type]


def has_shared_memory(device: torch.device, num_bytes: int) -> bool:
    """Whether a thread block can allocate ``num_bytes`` of shared memory on a CUDA device."""
    # not every release of torch declares the attribute in its stubs
    largest: int = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin")  # noqa: B009
    return num_bytes <= largest


@contextmanager
def kernel_states(states: Mapping[tuple[str, str], str]) -> Iterator[None]:
    """Temporarily replaces the states of kernels, in the whole process.

    Args:
        states: (operator, device type) -> ``"vitfast"``, if the kernel is loaded, or ``"torch: <reason>"``.
    """
    before = {key: _STATES[key] for key in states}
    _STATES.update(states)
    try:
        yield
    finally:
        _STATES.update(before)


@contextmanager
def chosen_kernels(choice: str, device_type: str) -> Iterator[None]:
    """Selects kernels for the whole process while the context is active; ``build_info()`` reports the selection.

    Args:
        choice: ``"auto"``: the default (for CUDA set by ``VITFAST_CUDA_KERNELS``); ``"torch"``: torch's operators;
            ``"all"``: every kernel of vitfast, covered by a committed result or not; or names of ``KERNELS``, separated
            by commas: these, and torch's operators for the others.
        device_type: ``"cpu"`` or ``"cuda"``; other devices keep their kernels.

    Raises:
        UserError: a name is unknown, or the device has no such kernel.
    """
    if choice == "auto":
        yield
        return
    names = [] if choice in ("all", "torch") else [name.strip() for name in choice.split(",")]
    for name in names:
        if name not in KERNELS:
            raise UserError(
                f"ops.kernels={choice}: {name!r} is unknown; allowed: auto, torch, all, or names separated by "
                f"commas: {', '.join(KERNELS)}"
            )
    states = {}
    for kernel in KERNELS:
        missing = missing_kernel(kernel, device_type)
        if kernel in names and missing is not None:
            raise UserError(
                f"ops.kernels={choice}: vitfast has no {kernel} kernel for {device_type} here ({missing}); leave it "
                "out, or use ops.kernels=all for all existing kernels"
            )
        if missing is None and (choice == "all" or kernel in names):
            states[kernel, device_type] = "vitfast"
        else:
            states[kernel, device_type] = f"torch: {missing or f'ops.kernels={choice}'}"
    with kernel_states(states):
        yield


def build_info() -> dict[str, Any]:
    """Reports what was built, for which targets, and which kernels are active and why.

    Returns:
        A JSON-serializable dict: versions; ``cpu`` (the active instruction set, the processor's features); ``cuda``;
        ``build`` (compilers, compiled instruction sets and architectures, or why there are none); ``kernels``: for
        each operator and device, ``"vitfast"`` or ``"torch: <reason>"``.
    """
    try:
        build = dict(importlib.import_module("vitfast._build_config").BUILD)
    except ModuleNotFoundError:
        build = {"reason": "vitfast was not built: pip install . compiles its kernels"}
    features = {}
    try:
        extension = importlib.import_module("vitfast._C")
    except ModuleNotFoundError:
        pass  # unlike the libraries, this module is specific to a Python version
    else:
        build["extension"] = extension.build_info()
        features = extension.cpu_features()
    capability = torch.ops.vitfast.cpu_capability() if _cpu_missing is None else "none: pure PyTorch"
    kernels = sorted({kernel for kernel, _ in _STATES})
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
        "kernels": {kernel: {device: _STATES[kernel, device] for device in ("cpu", "cuda")} for kernel in kernels},
    }
