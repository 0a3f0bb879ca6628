"""Assignment of source files to libraries, by file name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.options import BuildError, CudaArchitecture

ROOT = Path(__file__).resolve().parents[2]
CPU_LIBRARY = "libvitfast_cpu.so"
CUDA_LIBRARY = "libvitfast_cuda.so"

_CPU_PATTERNS = ("csrc/library.cpp", "csrc/common/*.cpp", "csrc/cpu/*.cpp", "csrc/*/*_cpu.cpp")
_ISA_PATTERN = "csrc/cpu/isa/*.cpp"
# operators, compiled without nvcc, and kernels
_CUDA_PATTERNS = ("csrc/*/*_cuda.cpp", "csrc/*/*.cu")
_CUTLASS_PREFIX = "csrc/linear/gemm_"

# operators only check and allocate: -O3 would take longer and gain nothing
OPERATOR_FLAGS = ("-O1",)
# Each file of csrc/cpu/isa is compiled for the instruction set of its name and selected at run time.
_AVX512 = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    "-mprefer-vector-width=512",
)
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    # as fast as with -O3, and compiled in half the time; the others need -O3
    "baseline": ("-O1", "-fpeel-loops"),
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
    """A file to compile, relative to the root, with its flags."""

    path: str
    flags: tuple[str, ...] = ()

    @property
    def needs_nvcc(self) -> bool:
        """Whether the file contains device code."""
        return self.path.endswith(".cu")

    @property
    def uses_cutlass(self) -> bool:
        """Whether the file includes CUTLASS headers."""
        return self.path.startswith(_CUTLASS_PREFIX)

    def select_architectures(self, architectures: Iterable[CudaArchitecture]) -> tuple[CudaArchitecture, ...]:
        """The architectures to compile for: ``*_sm90a.cu`` is for 9.0a only, ``*_sm80.cu`` for all but 9.0a."""
        for suffix, for_90a in (("_sm90a.cu", True), ("_sm80.cu", False)):
            if self.path.endswith(suffix):
                return tuple(item for item in architectures if (item.code == "90a") == for_90a)
        return tuple(architectures)


@dataclass(frozen=True)
class Sources:
    """The sources of libvitfast_cpu.so and libvitfast_cuda.so."""

    cpu: tuple[Source, ...]
    cuda: tuple[Source, ...]
    instruction_sets: tuple[str, ...]


def find_sources(root: Path, *, x86: bool) -> Sources:
    """Lists the files to compile, in a stable order; with ``x86`` for every instruction set of x86."""

    def find(*patterns: str) -> list[str]:
        return sorted({path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern)})

    plain = find(*_CPU_PATTERNS)
    if "csrc/library.cpp" not in plain:
        raise BuildError(
            f"{root} has no csrc/library.cpp: this is no complete copy of vitfast's sources.\n"
            "Get one: git clone the repository, or pip download --no-binary :all: --no-deps vitfast"
        )
    cpu = [Source(path, OPERATOR_FLAGS) for path in plain]
    instruction_sets = []
    isa_files = {Path(path).stem: path for path in find(_ISA_PATTERN)}
    unknown = sorted(isa_files.keys() - ISA_FLAGS.keys())
    if unknown:
        raise BuildError(
            f"csrc/cpu/isa/{unknown[0]}.cpp has no compiler flags; add {unknown[0]!r} to ISA_FLAGS in "
            "build_backend/vitfast_build/sources.py"
        )
    for name, flags in ISA_FLAGS.items():
        if name in isa_files and (x86 or name == "baseline"):
            cpu.append(Source(isa_files[name], flags))
            instruction_sets.append(name)
    # those that take longest first, so that the others fill the remaining cores
    cuda = sorted(map(Source, find(*_CUDA_PATTERNS)), key=lambda source: not source.uses_cutlass)
    return Sources(tuple(cpu), tuple(cuda), tuple(instruction_sets))
