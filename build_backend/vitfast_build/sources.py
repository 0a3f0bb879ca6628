"""Which file goes into which library: the names decide, as the design lays them out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.errors import BuildError
from vitfast_build.options import CudaArchitecture

CPU_LIBRARY = "libvitfast_cpu.so"
CUDA_LIBRARY = "libvitfast_cuda.so"

_CPU_PATTERNS = ("csrc/library.cpp", "csrc/common/*.cpp", "csrc/cpu/*.cpp", "csrc/*/*_cpu.cpp")
_ISA_PATTERN = "csrc/cpu/isa/*.cpp"
_CUDA_PATTERN = "csrc/**/*.cu"
_MODULE_SOURCE = "csrc/module.cpp"
_CUTLASS_FOLDER = "csrc/linear/"

# Each file of csrc/cpu/isa is compiled for the instruction set that its name says, and runs where the processor has it.
_AVX512 = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mfma",
    "-mf16c",
    "-mprefer-vector-width=512",
)
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": _AVX512,
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512_bf16": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
    "avx512_amx": (
        *(*_AVX512, "-mavx512vbmi", "-mavx512vnni", "-mavx512bf16"),
        *("-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    ),
}


@dataclass(frozen=True)
class Source:
    """A file to compile, relative to the project's root, and the flags that only it gets."""

    path: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """Every file to compile.

    Attributes:
        cpu: libvitfast_cpu.so.
        cuda: libvitfast_cuda.so.
        module: vitfast._C.
        instruction_sets: those that the CPU library is compiled for.
    """

    cpu: tuple[Source, ...]
    cuda: tuple[Source, ...]
    module: tuple[Source, ...]
    instruction_sets: tuple[str, ...]


def find_sources(root: Path, *, x86: bool) -> Sources:
    """Lists the files to compile, in a stable order.

    Args:
        root: the project's root.
        x86: True compiles every instruction set of x86, False the portable code only.

    Raises:
        BuildError: csrc is not there, or a file of csrc/cpu/isa has a name without flags.
    """
    plain = sorted({path for pattern in _CPU_PATTERNS for path in root.glob(pattern)})
    if root / "csrc/library.cpp" not in plain:
        raise BuildError(
            f"{root} has no csrc/library.cpp: this is no complete copy of vitfast's sources.\n"
            "Get one: git clone the repository, or pip download --no-binary :all: --no-deps vitfast"
        )
    cpu = [Source(_relative(path, root)) for path in plain]
    instruction_sets = []
    isa_files = {path.stem: path for path in root.glob(_ISA_PATTERN)}
    unknown = sorted(isa_files.keys() - ISA_FLAGS.keys())
    if unknown:
        raise BuildError(
            f"csrc/cpu/isa/{unknown[0]}.cpp has no compiler flags; add {unknown[0]!r} to ISA_FLAGS in "
            "build_backend/vitfast_build/sources.py"
        )
    for name, flags in ISA_FLAGS.items():
        if name in isa_files and (x86 or name == "baseline"):
            cpu.append(Source(_relative(isa_files[name], root), flags))
            instruction_sets.append(name)
    cuda = [Source(_relative(path, root)) for path in sorted(root.glob(_CUDA_PATTERN))]
    return Sources(tuple(cpu), tuple(cuda), (Source(_MODULE_SOURCE),), tuple(instruction_sets))


def uses_cutlass(source: Source) -> bool:
    """True for a file that includes NVIDIA's CUTLASS headers."""
    return source.path.startswith(_CUTLASS_FOLDER)


def architectures_of(source: Source, architectures: Iterable[CudaArchitecture]) -> tuple[CudaArchitecture, ...]:
    """Selects what a CUDA source is compiled for.

    ``*_sm90a.cu`` has instructions that only 9.0a knows; ``*_sm80.cu`` is its twin for all others. Any other file is
    for every architecture. A file without any architecture is left out of the library.
    """
    for suffix, wants_90a in (("_sm90a.cu", True), ("_sm80.cu", False)):
        if source.path.endswith(suffix):
            return tuple(item for item in architectures if (item.code == "90a") == wants_90a)
    return tuple(architectures)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
