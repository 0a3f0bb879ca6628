"""Compiles and links the three artefacts: libvitfast_cpu.so, libvitfast_cuda.so and the module vitfast._C."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vitfast_build import toolchain
from vitfast_build.cuda_toolkit import CudaDecision, CudaToolkit, decide_cuda
from vitfast_build.ninja_file import NinjaFile
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.sources import CPU_LIBRARY, CUDA_LIBRARY, OPERATOR_FLAGS, Source, Sources, find_sources

# No -march=native: the libraries run on any processor and dispatch at run time. No -ffast-math: it breaks NaN and inf.
COMMON_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-pthread"),
    # false positives of g++ 12 for std::optional<Tensor>; clang does not support the option
    *("-Wall", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
)
# -z defs: undefined symbols are errors at build time rather than at load time
LINK_FLAGS = ("-shared", "-Wl,-z,defs", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL", "-pthread")
# -O1 overrides -O3 and compiles in a third of the time. The expensive optimizations contract to FMA as -O3 does;
# without them float32 attention over 1025 tokens is not accurate enough for its test.
_SANITIZERS = "-fsanitize=address,undefined"
SANITIZE_FLAGS = (
    *(_SANITIZERS, "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"),
    *("-g", "-O1", "-fexpensive-optimizations"),
)
# one line when a step ends, as [12/41 at 95 s] csrc/packed/packed_linear_cpu.cpp; in a terminal ninja would rewrite one
_ONE_LINE_PER_STEP = {"NINJA_STATUS": "[%f/%t at %e s] ", "TERM": "dumb"}
PTXAS_LOG_SUFFIX = ".ptxas"
MODULE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"  # vitfast._C for this Python

GIB = 1 << 30
CPP_JOB_BYTES = 3 * GIB // 2
CUDA_JOB_BYTES = 4 * GIB


class Jobs(NamedTuple):
    """Maximum number of parallel compilers, and of parallel nvcc."""

    total: int
    cuda: int


@dataclass(frozen=True)
class NativeBuild:
    """A planned build: tools, options, sources and jobs."""

    root: Path
    options: BuildOptions
    torch: toolchain.TorchInstallation | None  # None: only vitfast._C is built, which does not use torch
    compiler: toolchain.Compiler
    ninja: str
    cuda: CudaDecision
    sources: Sources
    jobs: Jobs

    @classmethod
    def plan(
        cls, root: Path, options: BuildOptions, environment: Mapping[str, str], *, only_module: bool = False
    ) -> NativeBuild:
        """Finds the tools and decides what to build, without compiling; ``only_module`` omits the libraries."""
        sources = find_sources(root, x86=toolchain.is_x86())
        torch = None if only_module else toolchain.find_torch()
        compiler = toolchain.find_compiler(environment)
        if options.sanitize:
            toolchain.check_sanitizers(compiler, environment)
        ninja = toolchain.find_ninja(environment)
        cuda = decide_cuda(options, torch, environment) if torch else CudaDecision(None, "no library is built")
        jobs = choose_jobs(options.max_jobs, len(os.sched_getaffinity(0)), free_memory())
        return cls(root, options, torch, compiler, ninja, cuda, sources, jobs)

    @property
    def artefacts(self) -> list[str]:
        """File names of the build's results."""
        return [*([CPU_LIBRARY] if self.torch else []), *([CUDA_LIBRARY] if self.cuda.toolkit else []), MODULE]

    def run(self, folder: Path) -> None:
        """Brings the artefacts in ``folder`` up to date."""
        folder.mkdir(parents=True, exist_ok=True)
        ninja_file = folder / "build.ninja"
        text = self.ninja_text()
        if not ninja_file.exists() or ninja_file.read_text() != text:
            ninja_file.write_text(text)
        print(self._announcement(), flush=True)
        command = [self.ninja, "-C", str(folder), "-j", str(self.jobs.total)]
        if subprocess.run(command, env={**os.environ, **_ONE_LINE_PER_STEP}, check=False).returncode:
            raise BuildError(
                "Compilation failed: the step marked FAILED above shows its command and the compiler's message.\n"
                "To repeat it, one file at a time (pip install needs --no-build-isolation, else it has removed torch's "
                "headers):\n"
                f"    ninja -C {shlex.quote(str(folder))} -j 1\n"
                "If memory ran out (a compiler was killed), use fewer jobs: export MAX_JOBS=1"
            )

    def _announcement(self) -> str:
        libraries = "the CPU library" if self.torch else MODULE
        if self.cuda.toolkit is not None:
            architectures = "; ".join(map(str, self.cuda.architectures))
            libraries += f" and the CUDA library ({architectures}; VITFAST_CUDA=0 skips it)"
        return f"vitfast: compiling {libraries}, parallel compilers: {self.jobs.total}"

    def ninja_text(self) -> str:
        """Generates build.ninja."""
        ninja = NinjaFile(self.root, cuda_jobs=self.jobs.cuda)
        compiler = self.compiler
        target = (f"-DTORCH_TARGET_VERSION={toolchain.TORCH_TARGET_VERSION}", f"-I{self.root}")
        sanitize, sanitize_link = (SANITIZE_FLAGS, (_SANITIZERS,)) if self.options.sanitize else ((), ())
        shared = (*compiler.command, *compiler.flags, *COMMON_FLAGS, *sanitize, *self._prefix_maps())
        link = (*compiler.command, *compiler.link_flags, *LINK_FLAGS, *sanitize_link)

        if self.torch is not None:
            # -isystem: no warnings from headers of torch and Python
            headers = (*target, "-isystem", str(self.torch.folder / "include"))
            torch_libraries = (f"-L{self.torch.folder / 'lib'}", "-ltorch_cpu")
            ninja.compile_rule("cpu", (*shared, *headers))
            ninja.link_rule("cpu", link, torch_libraries)
            ninja.library(CPU_LIBRARY, self.sources.cpu, "cpu")
            if self.cuda.toolkit is not None:
                cuda_headers = (*headers, "-isystem", str(self.torch.nvidia_include_folder))
                self._add_cuda(ninja, self.cuda.toolkit, shared, cuda_headers, torch_libraries)

        python_headers = [word for folder in toolchain.python_include_folders() for word in ("-isystem", folder)]
        ninja.compile_rule("module", (*shared, *OPERATOR_FLAGS, *target, *python_headers))
        # Python's symbols are defined by the interpreter
        ninja.link_rule("module", [word for word in link if word != "-Wl,-z,defs"], ())
        ninja.library(MODULE, [Source("csrc/module.cpp")], "module")
        return ninja.text()

    def _add_cuda(
        self,
        ninja: NinjaFile,
        toolkit: CudaToolkit,
        cpp_command: tuple[str, ...],
        headers: tuple[str, ...],
        torch_libraries: tuple[str, ...],
    ) -> None:
        # the toolkit's headers first: those installed with torch may be of another minor version
        folder = toolkit.folder / "include"
        headers = (*(("-isystem", str(folder)) if folder.is_dir() else ()), *headers)
        # -DUSE_CUDA enables the CUDA functions of torch's stable headers
        ninja.compile_rule("cuda_cpp", (*cpp_command, "-DUSE_CUDA", *headers))
        host = ("-fPIC", "-fvisibility=hidden", "-Wall", *self._prefix_maps())
        command = [
            str(toolkit.nvcc),
            f"-ccbin={self.compiler.program}",
            "-O3",
            "-std=c++17",
            "--expt-relaxed-constexpr",
            *(f"-Xcompiler={flag}" for flag in host),
            *headers,
            "-Xptxas=-v",
        ]
        # the resource report goes to a file beside the object; warnings and errors are printed
        log = f"$out{PTXAS_LOG_SUFFIX}"
        show_rest = f"grep -v -e '^ptxas info' -e '^ *[0-9]* bytes stack frame' {log} >&2"
        ninja.compile_rule("cuda", command, after=f" 2> {log}; status=$$?; {show_rest}; exit $$status", pool="cuda")
        link = [str(toolkit.nvcc), f"-ccbin={self.compiler.program}", "-shared", "-cudart=static", "-nodlink"]
        link += [f"-Xlinker={flag.removeprefix('-Wl,')}" for flag in LINK_FLAGS if flag.startswith("-Wl,")]
        ninja.link_rule("cuda", link, (*torch_libraries, "-ltorch_cuda"))
        sources = self.cuda_sources()
        objects = ninja.objects([source for source in sources if source.needs_nvcc], "cuda")
        objects += ninja.objects([source for source in sources if not source.needs_nvcc], "cuda_cpp")
        ninja.link(CUDA_LIBRARY, objects, "cuda")

    def cuda_sources(self) -> list[Source]:
        """Sources of libvitfast_cuda.so with the flags of their architectures."""
        has_90a = any(item.code == "90a" for item in self.cuda.architectures)
        has_others = any(item.code != "90a" for item in self.cuda.architectures)
        # csrc/linear/linear_cuda.cpp selects kernels by these
        kernels = (*OPERATOR_FLAGS, f"-DVITFAST_HAS_SM90A={int(has_90a)}", f"-DVITFAST_HAS_SM80={int(has_others)}")
        cutlass = ("-DNDEBUG", "-isystem", str(self.cuda.cutlass))  # assert would slow down CUTLASS kernels
        sources = []
        for source in self.sources.cuda:
            if not source.needs_nvcc:
                sources.append(replace(source, flags=kernels))
                continue
            architectures = source.select_architectures(self.cuda.architectures)
            flags = [flag for item in architectures for flag in item.nvcc_flags]
            if flags:
                flags += [*source.flags, *(cutlass if source.uses_cutlass else ())]
                sources.append(replace(source, flags=tuple(flags)))
        return sources

    def _prefix_maps(self) -> tuple[str, ...]:
        """Removes this machine's paths from the libraries' error messages."""
        folders = [self.root, *([self.torch.folder / "include"] if self.torch else [])]
        folders += [self.cuda.cutlass] if self.cuda.cutlass else []
        return tuple(f"-fmacro-prefix-map={folder}/=" for folder in folders)


def choose_jobs(max_jobs: int | None, cores: int, memory_bytes: int | None) -> Jobs:
    """As many jobs as MAX_JOBS, the cores and the free memory (None: unknown) allow, and at least one."""
    total = cores if max_jobs is None else min(cores, max_jobs)
    cuda = total
    if memory_bytes is not None:
        total = min(total, memory_bytes // CPP_JOB_BYTES)
        cuda = min(total, memory_bytes // CUDA_JOB_BYTES)
    return Jobs(max(1, total), max(1, cuda))


def free_memory(root: Path = Path("/")) -> int | None:
    """Free memory in bytes: of the machine, or of the container's limit if that is less."""
    available = re.search(r"^MemAvailable: *(\d+)", _read(root / "proc/meminfo"), re.MULTILINE)
    found = [int(available[1]) * 1024] if available else []
    group = root / "sys/fs/cgroup"
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        # the page cache counts as used but is reclaimable
        cached = re.search(r"^inactive_file (\d+)", _read(group / "memory.stat"), re.MULTILINE)
        found.append(max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0)))
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
