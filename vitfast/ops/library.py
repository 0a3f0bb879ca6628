"""Loads the native libraries and selects the active kernels: vitfast's or torch's operators."""

from __future__ import annotations

import importlib
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import vitfast
from vitfast.errors import UserError
from vitfast.ops.gpu import Gpu, device_property, read_record, record_identity, unsupported_gpu, visible_gpus

logger = logging.getLogger(__name__)

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
# not a replacement of torch's operators: used on request, and only with VITFAST_CUDA_KERNELS=all
RESEARCH_KERNELS = ("matmul_fp16_accumulation",)
VERIFIABLE_KERNELS = tuple(kernel for kernel in CUDA_KERNELS if kernel not in RESEARCH_KERNELS)
# kernels that ops.kernels selects; models that use the packed kernels hold packed weights, which rules out a choice
KERNELS = tuple(kernel for kernel in CPU_KERNELS if kernel != "packed")

# verdict of vitfast.verify -> state of a kernel
PROVEN_STATES = {"proven": "vitfast", "proven for inference": "vitfast for inference"}
# proven on an H100 by benchmarks/results/verify-h100.json: the kernels of builds for 9.0a, on GPUs of its capability
PROVEN_ARCHITECTURE = "9.0a"
PROVEN_CUDA_KERNELS = frozenset(
    (
        "attention",
        "gated_positional_attention",
        "layer_norm",
        "linear",
        "matmul_accumulate",
        "mlp",
        "quantize_fixed",
        "quantize_float",
        "upsample_relations",
    )
)

CUDA_KERNEL_CHOICES = ("proven", "all", "none")
ISA_CHOICES = ("auto", "baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")


def _environment_choice(variable: str, choices: tuple[str, ...]) -> str:
    """Reads an environment variable with one of ``choices``; the first is the default."""
    value = os.environ.get(variable, "") or choices[0]
    if value not in choices:
        raise ValueError(f"{variable}={value!r} is not known; allowed: {', '.join(choices)}")
    return value


def library_path(name: str) -> Path | None:
    """Returns the file of ``vitfast_cpu`` or ``vitfast_cuda``; None if it was not built."""
    candidates = [Path(folder) / f"lib{name}.so" for folder in vitfast.__path__]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _load(name: str) -> str | None:
    """Loads a library of this package; returns the reason if it is missing."""
    path = library_path(name)
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


def _build() -> dict[str, Any]:
    """The description of the build."""
    try:
        return dict(importlib.import_module("vitfast._build_config").BUILD)
    except ModuleNotFoundError:
        return {"reason": "vitfast was not built: pip install . compiles its kernels"}


def missing_kernel(kernel: str, device_type: str) -> str | None:
    """Returns why vitfast has no kernel for an operator on ``"cpu"`` or ``"cuda"``; None if it has one."""
    if device_type == "cuda" and kernel not in CUDA_KERNELS:
        return "no CUDA kernel yet"
    if device_type != "cuda" and kernel not in CPU_KERNELS:
        return "on CUDA only"
    library, missing = ("cuda", _cuda_missing) if device_type == "cuda" else ("cpu", _cpu_missing)
    if device_type == "cuda" and missing is None:
        missing = unsupported_gpu(visible_gpus(), _build().get("cuda_architectures", ()))
    return None if missing is None else f"libvitfast_{library}.so: {missing}"


# (kernel, device type) -> "vitfast" or "torch: reason"; on CUDA "vitfast: reason" or "vitfast for inference: reason",
# added when one is first read
_STATES: dict[tuple[str, str], str] = {}


def _add_states(device_type: str) -> None:
    for kernel in sorted({*CPU_KERNELS, *CUDA_KERNELS}):
        missing = missing_kernel(kernel, device_type)
        _STATES[kernel, device_type] = "vitfast" if missing is None else f"torch: {missing}"


_add_states("cpu")
_add_states("meta")
_hint: str | None = None  # for the first operator that runs on a GPU


def _add_cuda_states() -> None:
    """Adds the states of the CUDA kernels, which depend on the visible GPUs and their records."""
    global _hint
    if ("attention", "cuda") in _STATES:
        return
    _add_states("cuda")
    loaded = [kernel for kernel in CUDA_KERNELS if _STATES[kernel, "cuda"] == "vitfast"]
    if _cuda_kernels != "proven":
        reason = f"VITFAST_CUDA_KERNELS={_cuda_kernels}"
        state = f"vitfast: {reason}" if _cuda_kernels == "all" else f"torch: {reason}"
        _STATES.update({(kernel, "cuda"): state for kernel in loaded})
        return
    if not loaded:
        return
    outcomes = [(gpu, _verified(gpu)) for gpu in visible_gpus()]
    _STATES.update({(kernel, "cuda"): _proven_state(kernel, outcomes) for kernel in loaded})
    unverified = [
        gpu
        for gpu, found in outcomes
        if any(kernel not in found and not _is_covered(kernel, gpu) for kernel in VERIFIABLE_KERNELS)
    ]
    if unverified:
        _hint = (
            f"not all of vitfast's CUDA kernels are verified on the {unverified[0]}; torch's operators replace them. "
            "`python -m vitfast.verify` checks and times them, in about two minutes"
        )


def _verified(gpu: Gpu) -> dict[str, dict[str, Any]]:
    """Kernel -> its outcome in the record of a GPU."""
    library = library_path("vitfast_cuda")
    return {} if library is None else read_record(record_identity(gpu, library))["kernels"]


def _proven_state(kernel: str, outcomes: list[tuple[Gpu, dict[str, dict[str, Any]]]]) -> str:
    """The state of a loaded kernel, which runs if it is proven on every visible GPU."""
    if kernel in RESEARCH_KERNELS:
        return "torch: a research kernel, which only VITFAST_CUDA_KERNELS=all enables"
    details, verdicts = [], set()
    for gpu, found in outcomes:
        outcome = found.get(kernel)
        if outcome is None and _is_covered(kernel, gpu):
            details.append("covered by a committed result")
        elif outcome is None:
            return f"torch: not verified on the {gpu}; run python -m vitfast.verify"
        elif outcome["verdict"] not in PROVEN_STATES:
            return f"torch: {outcome['verdict']} on the {gpu}: {outcome['detail']}"
        else:
            details.append(f"verified on the {gpu}: {outcome['detail']}")
            verdicts.add(outcome["verdict"])
    state = PROVEN_STATES["proven for inference" if "proven for inference" in verdicts else "proven"]
    return f"{state}: {'; '.join(details)}"


def _is_covered(kernel: str, gpu: Gpu) -> bool:
    """Whether a committed result covers a kernel of this build on a GPU."""
    is_built = PROVEN_ARCHITECTURE in _build().get("cuda_architectures", ())
    return kernel in PROVEN_CUDA_KERNELS and is_built and unsupported_gpu([gpu], [PROVEN_ARCHITECTURE]) is None


def forget_cuda_states() -> None:
    """Reads the visible GPUs and their records again, when a state is next needed."""
    for kernel in {*CPU_KERNELS, *CUDA_KERNELS}:
        _STATES.pop((kernel, "cuda"), None)


def _prepare_cuda_operators() -> None:
    """Adds the states of CUDA kernels and logs the hint to verify them, once in a process."""
    global _hint
    _add_cuda_states()
    hint, _hint = _hint, None
    if hint is not None:
        logger.warning("%s", hint)


# torch.compile calls it instead of tracing it, see device_property
_prepare_cuda_operators._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_kernel(kernel: str, device_type: str, with_gradients: bool = False) -> bool:
    """Whether vitfast's kernel runs for this operator on this type of device; none does in an export to ONNX."""
    if device_type == "cuda":
        _prepare_cuda_operators()
    state = _STATES.get((kernel, device_type), "torch")
    is_on = state.startswith("vitfast") and not (with_gradients and state.startswith("vitfast for inference"))
    return is_on and not is_onnx_export()


_only_torch = False  # set by ``torch_operators``


@contextmanager
def torch_operators() -> Iterator[None]:
    """Makes models compute with torch's operators in the whole process, as in ``torch.onnx.export``."""
    global _only_torch
    before, _only_torch = _only_torch, True
    try:
        yield
    finally:
        _only_torch = before


def is_onnx_export() -> bool:
    """Whether ``torch.onnx.export`` runs, which knows only torch's operators, or ``torch_operators`` is active."""
    if _only_torch:
        return True
    is_traced = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced and torch.onnx.is_in_onnx_export()


# as above; Dynamo takes is_in_onnx_export for False
is_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel_state(kernel: str, device_type: str) -> str:
    """Returns ``"vitfast"``, on CUDA with a reason, or ``"torch: <reason>"``, as in ``build_info``."""
    if device_type == "cuda":
        _add_cuda_states()
    return _STATES[kernel, device_type]


def has_shared_memory(device: torch.device, num_bytes: int) -> bool:
    """Whether a thread block can allocate ``num_bytes`` of shared memory on a CUDA device."""
    return num_bytes <= device_property(_index_of(device), "shared_memory_per_block_optin")


def fills_gpu(blocks: int, device: torch.device) -> bool:
    """Whether there is a thread block for each multiprocessor of a CUDA device."""
    return blocks >= device_property(_index_of(device), "multi_processor_count")


def _index_of(device: torch.device) -> int:
    return device.index if device.index is not None else torch.cuda.current_device()


@contextmanager
def kernel_states(states: Mapping[tuple[str, str], str]) -> Iterator[None]:
    """Temporarily replaces the states of kernels, in the whole process.

    Args:
        states: (operator, device type) -> ``"vitfast"``, if the kernel is loaded, or ``"torch: <reason>"``.
    """
    before = {key: kernel_state(*key) for key in states}
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
        each operator and device, ``"vitfast"`` or ``"torch: <reason>"``; on CUDA ``"vitfast: <reason>"``, or
        ``"vitfast for inference: <reason>"`` where torch's operators compute what needs gradients.
    """
    build = _build()
    features = {}
    try:
        extension = importlib.import_module("vitfast._C")
    except ModuleNotFoundError:
        pass  # unlike the libraries, this module is specific to a Python version
    else:
        build["extension"] = extension.build_info()
        features = extension.cpu_features()
    capability = torch.ops.vitfast.cpu_capability() if _cpu_missing is None else "none: pure PyTorch"
    kernels = sorted({*CPU_KERNELS, *CUDA_KERNELS})
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
        "kernels": {kernel: {device: kernel_state(kernel, device) for device in ("cpu", "cuda")} for kernel in kernels},
    }
