"""Builds and runs the programs of tests/simt: CUDA kernels, compiled by the host's compiler and run on fibers.

    result = simt.run("attention", {"qkv": qkv}, {"out": (shape, dtype)}, {"batch": 2, "scale": 0.125})

The same sources, compiled by nvcc, run on a GPU: variant ``cuda``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitfast_build.cuda_toolkit import find_toolkit
from vitfast_build.toolchain import find_compiler

ROOT = Path(__file__).resolve().parents[2]
SIMT = ROOT / "tests" / "simt"

_FLAGS = ["-std=c++17", "-g", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]
_HOST = ["-include", "tests/simt/host/cuda_language.h"]
_ADDRESS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
# variant -> flags for the program, for the runtime, for linking
VARIANTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    # results: against float64, outputs and shared memory poisoned
    "plain": (["-O2"], ["-O2"], []),
    # accesses outside arrays of global and shared memory, undefined behaviour
    "address": (_ADDRESS, _ADDRESS, _ADDRESS),
    # races, uninitialized reads and unfinished copies in shared memory; the hooks are those of tests/simt/runtime/race.cpp
    "race": (
        ["-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
        ["-O2", "-DSIMT_RACE"],
        [],
    ),
}
_RUNTIME = ("fiber", "race", "simt")


class SimtError(Exception):
    """A program has ended with an error; the text is what it said."""


def run(
    program: str | Path,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, tuple[Sequence[int], torch.dtype]],
    options: Mapping[str, object],
    *,
    variant: str = "plain",
    order: str = "forward",
) -> dict[str, Tensor]:
    """Runs a program on tensors.

    Args:
        program: a name in tests/simt/programs, or an executable that ``build`` has made.
        inputs: by name; those that are missing are null to the kernel.
        outputs: by name, their shapes and types. An element that the kernel does not write is NaN.
        options: numbers and words for the program.
        variant: a key of ``VARIANTS``, or ``"cuda"``.
        order: in which blocks and warps start: ``"forward"``, ``"reversed"``, or a number, the seed of a shuffle.

    Raises:
        SimtError: the runtime, AddressSanitizer or the race check has found a fault.
    """
    executable = program if isinstance(program, Path) else build(program, variant)
    with tempfile.TemporaryDirectory() as folder:
        for name, tensor in inputs.items():
            Path(folder, f"{name}.bin").write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        words = [f"{key}={value}" for key, value in options.items()]
        # leaks are not looked for: the program ends, and its memory with it
        environment = {**os.environ, "SIMT_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
        answer = subprocess.run(
            [executable, folder, *words], env=environment, capture_output=True, text=True, timeout=600
        )
        if answer.returncode:
            raise SimtError(answer.stderr.strip() or f"exit code {answer.returncode}")
        return {name: _read(Path(folder, f"{name}.bin"), *described) for name, described in outputs.items()}


def _read(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    data = bytearray(path.read_bytes())
    return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(tuple(shape))


def build(program: str, variant: str = "plain", *, replaced: Mapping[str, str] | None = None) -> Path:
    """Compiles a program, unless it has been compiled from the same files before.

    Args:
        program: a name in tests/simt/programs.
        variant: a key of ``VARIANTS``, or ``"cuda"``.
        replaced: other texts for files of csrc, by path from the root: mutants.

    Returns:
        The executable.
    """
    replaced = replaced or {}
    folder = ROOT / ".cache" / "simt"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{program}-{variant}-{_fingerprint(variant, replaced)}"
    target = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                for path, text in replaced.items():
                    mutant = Path(work, "mutant", path)
                    mutant.parent.mkdir(parents=True, exist_ok=True)
                    mutant.write_text(text)
                made = Path(work, name)
                _compile(program, variant, Path(work), made)
                made.rename(target)
    return target


def _fingerprint(variant: str, replaced: Mapping[str, str]) -> str:
    """Of everything that an executable depends on."""
    digest = hashlib.sha256(
        repr((find_compiler(os.environ), _FLAGS, VARIANTS.get(variant), sorted(replaced.items()))).encode()
    )
    for path in sorted([*(ROOT / "csrc").rglob("*.*h"), *SIMT.rglob("*.*h"), *SIMT.rglob("*.cpp")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(program: str, variant: str, work: Path, target: Path) -> None:
    source = f"tests/simt/programs/{program}.cpp"
    mutant = ["-I", str(work / "mutant")]
    if variant == "cuda":
        toolkit = find_toolkit(os.environ)
        assert toolkit is not None, "variant cuda needs nvcc"
        command = [str(toolkit.nvcc), "-std=c++17", "-O3", "-arch=native", "--expt-relaxed-constexpr", "-x", "cu"]
        _run([*command, *mutant, "-I", str(ROOT), source, "-o", str(target)])
        return
    program_flags, runtime_flags, link_flags = VARIANTS[variant]
    compiler = [*find_compiler(os.environ).command, *_FLAGS]
    headers = [*mutant, "-I", "tests/simt/host", "-I", str(ROOT)]
    objects = [work / f"{name}.o" for name in ("program", *_RUNTIME)]
    _run([*compiler, *program_flags, *_HOST, *headers, "-c", source, "-o", str(objects[0])])
    for name, object_file in zip(_RUNTIME, objects[1:], strict=True):
        runtime = f"tests/simt/runtime/{name}.cpp"
        _run([*compiler, *runtime_flags, "-I", str(ROOT), "-c", runtime, "-o", str(object_file)])
    _run([*compiler, *link_flags, *map(str, objects), "-o", str(target)])


def _run(command: Iterable[str]) -> None:
    answer = subprocess.run(list(command), cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, f"{' '.join(command)}\n{answer.stderr}"


def fault(error: SimtError) -> str:
    """What kind of fault a program reports: ``race``, ``pending``, ``uninitialized``, ``address`` or ``runtime``."""
    match = re.search(r"simt: [^\n]*?: (race|pending|uninitialized): |(AddressSanitizer|runtime error)", str(error))
    if match is None:
        return "runtime"
    return match[1] or "address"
