"""Builds and runs the programs of tests/simt: CUDA kernels, compiled by the host's compiler and run on fibers.

    result = simt.run("attention", {"qkv": qkv}, {"out": (shape, dtype)}, {"batch": 2, "scale": 0.125})

The same sources, compiled by nvcc, run on a GPU: variant ``cuda``. There ``VITFAST_SIMT_WRAPPER`` is a command to run
them under, such as ``compute-sanitizer --tool memcheck --error-exitcode 9``.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitfast_build.cuda_toolkit import find_toolkit
from vitfast_build.toolchain import Compiler, find_compiler

ROOT = Path(__file__).resolve().parents[2]
SIMT = ROOT / "tests" / "simt"

_FLAGS = ["-std=c++17", "-g1", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]
_HOST = ["-include", "tests/simt/host/cuda_language.h"]
_ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
# variant -> flags for the program, for the runtime, for linking. A program takes longer to compile than to run, so that
# it is optimized little; the race check needs functions inlined, of whose stores g++ reports nothing to it otherwise.
VARIANTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    # results: against float64, outputs and shared memory poisoned
    "plain": (["-Og"], ["-O2"], []),
    # accesses outside arrays of global and shared memory, undefined behaviour
    "address": (["-Og", *_ADDRESS], ["-O2", *_ADDRESS], _ADDRESS),
    # races, uninitialized reads and unfinished copies in shared memory, by the hooks of tests/simt/runtime/race.cpp
    "race": (
        ["-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
        ["-O2", "-DSIMT_RACE"],
        [],
    ),
}
# of the runtime, in every variant: the arithmetic of the matrix unit
_ARITHMETIC = ["-O3", "-Wno-psabi"]
# as the programs call them
_ELEMENTS = {torch.float16: "vitfast::Half", torch.bfloat16: "vitfast::BFloat16", torch.float32: "float"}
_RUNTIME = tuple(SIMT / "runtime" / f"{name}.cpp" for name in ("fiber", "race", "simt", "matrix_unit", "program"))


class SimtError(Exception):
    """A program has ended with an error; the text is what it said."""


def run(
    program: str | Path,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, tuple[Sequence[int], torch.dtype]],
    options: Mapping[str, object],
    *,
    element: torch.dtype | None = None,
    defines: tuple[str, ...] = (),
    variant: str = "plain",
    order: str = "forward",
) -> dict[str, Tensor]:
    """Runs a program on tensors.

    Args:
        program: a name in tests/simt/programs, or an executable that ``build`` has made.
        inputs: by name; those that are missing are null to the kernel.
        outputs: by name, their shapes and types. An element that the kernel does not write is NaN.
        options: numbers and words for the program.
        element: the type whose instances are compiled and run, of a program that has some for each (``run_typed``).
        defines: macros that limit the instances of a program in tests/simt/programs.
        variant: a key of ``VARIANTS``, or ``"cuda"``.
        order: in which blocks and warps start: ``"forward"``, ``"reversed"``, or a number, the seed of a shuffle.

    Raises:
        SimtError: the runtime, AddressSanitizer or the race check has found a fault.
    """
    if element is not None:
        options = {**options, "type": str(element).removeprefix("torch.")}
        defines = (f"SIMT_TYPE={_ELEMENTS[element]}", *defines)
    executable = program if isinstance(program, Path) else build(program, variant, defines=defines)
    with tempfile.TemporaryDirectory() as folder:
        for name, tensor in inputs.items():
            Path(folder, f"{name}.bin").write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        words = [f"{key}={value}" for key, value in options.items()]
        # leaks are not looked for: the program ends, and its memory with it
        environment = {**os.environ, "SIMT_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
        wrapper = shlex.split(os.environ.get("VITFAST_SIMT_WRAPPER", "")) if variant == "cuda" else []
        command = [*wrapper, executable, folder, *words]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if answer.returncode:
            raise SimtError(answer.stderr.strip() or f"exit code {answer.returncode}: {answer.stdout[-2000:]}")
        return {name: _read(Path(folder, f"{name}.bin"), *described) for name, described in outputs.items()}


def _read(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    data = bytearray(path.read_bytes())
    return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(tuple(shape))


def build(
    program: str,
    variant: str = "plain",
    *,
    replaced: Mapping[str, str] | None = None,
    defines: tuple[str, ...] = (),
) -> Path:
    """Compiles a program, unless it has been compiled from the same files before.

    Args:
        program: a name in tests/simt/programs.
        variant: a key of ``VARIANTS``, or ``"cuda"``.
        replaced: other texts for files of csrc, by path from the root, for mutation tests.
        defines: macros for the program, ``NAME=value``.

    Returns:
        The executable.
    """
    replaced = replaced or {}
    define_flags = [f"-D{define}" for define in defines]

    def compile_program(work: Path, target: Path) -> None:
        for path, text in replaced.items():
            mutated = work / "mutated" / path
            mutated.parent.mkdir(parents=True, exist_ok=True)
            mutated.write_text(text)
        source = f"tests/simt/programs/{program}.cpp"
        if variant == "cuda":
            sources = [source, "tests/simt/runtime/program.cpp"]
            _run([*_nvcc(), *define_flags, "-I", work / "mutated", "-I", ROOT, "-x", "cu", *sources, "-o", target])
            return
        program_flags, runtime_flags, link_flags = VARIANTS[variant]
        compiler = [*_compiler().command, *_FLAGS]
        headers = ["-I", work / "mutated", "-I", "tests/simt/host", "-I", ROOT]
        object_file = work / "program.o"
        _run([*compiler, *program_flags, *define_flags, *_HOST, *headers, "-c", source, "-o", object_file])
        runtime = [
            _runtime_object(source, tuple(_ARITHMETIC if source.stem == "matrix_unit" else runtime_flags))
            for source in _RUNTIME
        ]
        _run([*compiler, *link_flags, object_file, *runtime, "-o", target])

    sources = (SIMT / "programs" / f"{program}.cpp", *_RUNTIME)
    return _made_once(f"{program}-{variant}", sources, (sorted(replaced.items()), defines), compile_program)


def _runtime_object(source: Path, flags: tuple[str, ...]) -> Path:
    """A part of the emulation, one object file for all programs."""

    def compile_source(work: Path, target: Path) -> None:
        headers = ["-I", "tests/simt/host", "-I", ROOT]
        _run([*_compiler().command, *_FLAGS, *flags, *headers, "-c", source.relative_to(ROOT), "-o", target])

    return _made_once(f"{source.stem}.o", (source,), flags, compile_source)


@functools.cache
def _compiler() -> Compiler:
    return find_compiler(os.environ)


@functools.cache
def _digest(sources: tuple[Path, ...]) -> str:
    """Returns a hash of the sources and of everything they include, for the host and for a GPU."""
    texts: dict[str, bytes] = {}
    left = [*sources, SIMT / "host" / "cuda_language.h"]
    while left:
        path = left.pop()
        name = path.relative_to(ROOT).as_posix()
        if name not in texts and path.exists():
            texts[name] = path.read_bytes()
            included = re.findall(r'^#include "(.+)"$', texts[name].decode(), re.MULTILINE)
            left += [root / other for other in included for root in (SIMT / "host", ROOT)]
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()


def _made_once(name: str, sources: tuple[Path, ...], key: object, make: Callable[[Path, Path], None]) -> Path:
    """A file that is made unless it has been, from the same sources and by the same compiler, in any process."""
    made_from = (_compiler(), _FLAGS, _HOST, VARIANTS, _digest(sources), key)
    digest = hashlib.sha256(repr(made_from).encode())
    folder = ROOT / ".cache" / "simt"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{digest.hexdigest()[:16]}-{name}"
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = Path(work, name)
                make(Path(work), made)
                made.rename(target)
    return target


def _nvcc() -> list[str]:
    toolkit = find_toolkit(os.environ)
    assert toolkit is not None, "variant cuda needs nvcc"
    architecture = "native" if torch.cuda.is_available() else "sm_90a"  # the latter to see that it compiles
    return [str(toolkit.nvcc), "-std=c++17", "-O3", f"-arch={architecture}", "--expt-relaxed-constexpr"]


def _run(command: Iterable[str | Path]) -> None:
    words = [str(word) for word in command]
    answer = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, f"{' '.join(words)}\n{answer.stderr}"


def fault(error: SimtError) -> str:
    """What kind of fault a program reports.

    Returns:
        ``race``, ``pending`` or ``uninitialized`` (the race check), ``address`` (AddressSanitizer), ``runtime`` (the
        emulation itself), or ``crash``.
    """
    text = str(error)
    if match := re.search(r"simt: [^\n]*?: (race|pending|uninitialized): ", text):
        return match[1]
    if "AddressSanitizer" in text or "runtime error" in text:
        return "address"
    return "runtime" if "simt: " in text else "crash"
