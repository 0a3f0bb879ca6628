"""Compiles and links the three artefacts: libvitfast_cpu.so, libvitfast_cuda.so and the module vitfast._C."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.cuda_toolkit import CudaDecision, CudaToolkit, decide_cuda
from vitfast_build.errors import BuildError
from vitfast_build.jobs import Jobs, choose_jobs, free_memory, usable_cores
from vitfast_build.ninja_file import NinjaFile
from vitfast_build.options import BuildOptions
from vitfast_build.python_headers import python_include_folders
from vitfast_build.sources import (
    CPU_LIBRARY,
    CUDA_LIBRARY,
    Source,
    Sources,
    architectures_of,
    find_sources,
    uses_cutlass,
)
from vitfast_build.toolchain import (
    Compiler,
    check_platform,
    check_sanitizers,
    find_compiler,
    find_ninja,
    is_x86,
)
from vitfast_build.torch_installation import TORCH_TARGET_VERSION, TorchInstallation, find_torch

# No -march=native: the libraries run on any processor, and dispatch at run time. No -ffast-math: NaN and inf count.
COMMON_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    # g++ 12 sees an uninitialized std::optional<Tensor> where there is none; clang does not know the option
    "-Wno-maybe-uninitialized",
    "-Wno-unknown-warning-option",
    "-pthread",
)
# -z defs: a symbol that no stable library defines is an error here rather than at the user's
LINK_FLAGS = ("-shared", "-Wl,-z,defs", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL", "-pthread")
# -O1 comes after -O3 and wins: errors are the same, and the compiler needs a third of the time. The expensive
# optimizations fuse products and sums as -O3 does; without them float32 attention over 1025 tokens is not accurate
# enough for its test.
_SANITIZERS = "-fsanitize=address,undefined"
SANITIZE_FLAGS = (
    _SANITIZERS,
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
    "-fexpensive-optimizations",
)
PTXAS_LOG_SUFFIX = ".ptxas"


@dataclass(frozen=True)
class NativeBuild:
    """Everything that is known before the first compiler runs."""

    root: Path
    options: BuildOptions
    torch: TorchInstallation
    compiler: Compiler
    ninja: str
    cuda: CudaDecision
    sources: Sources
    jobs: Jobs

    @classmethod
    def plan(cls, root: Path, options: BuildOptions, environment: Mapping[str, str]) -> NativeBuild:
        """Finds the tools and decides what is built; compiles nothing yet.

        Raises:
            BuildError: something is missing, with the command that mends it.
        """
        check_platform()
        sources = find_sources(root, x86=is_x86())
        torch = find_torch()
        compiler = find_compiler(environment)
        if options.sanitize:
            check_sanitizers(compiler, environment)
        ninja = find_ninja(environment)
        cuda = decide_cuda(options, torch, environment)
        jobs = choose_jobs(options.max_jobs, usable_cores(), free_memory())
        return cls(root, options, torch, compiler, ninja, cuda, sources, jobs)

    @property
    def module_name(self) -> str:
        """The file name of vitfast._C for this Python."""
        return f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

    @property
    def artefacts(self) -> list[str]:
        """The files that the build makes."""
        return [CPU_LIBRARY, *([CUDA_LIBRARY] if self.cuda.toolkit else []), self.module_name]

    def run(self, folder: Path) -> None:
        """Brings the artefacts in ``folder`` up to date.

        Raises:
            BuildError: a compiler failed; what it said has been printed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        ninja_file = folder / "build.ninja"
        text = self.ninja_text()
        if not ninja_file.exists() or ninja_file.read_text() != text:
            ninja_file.write_text(text)
        result = subprocess.run([self.ninja, "-C", str(folder), "-j", str(self.jobs.total)], check=False)
        if result.returncode:
            raise BuildError(
                "Compilation failed: the compiler's own message is above. To see it again, by itself:\n"
                f"    ninja -C {folder} -j 1\n"
                "If memory ran out (a compiler was killed), use fewer jobs: export MAX_JOBS=1"
            )

    def ninja_text(self) -> str:
        """The text of build.ninja."""
        ninja = NinjaFile(cuda_jobs=self.jobs.cuda)
        compiler = self.compiler
        # headers of torch and Python: no warnings of theirs
        torch_headers = ("-isystem", str(self.torch.include_folder))
        target = (f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-I{self.root}")
        sanitize, sanitize_link = (SANITIZE_FLAGS, (_SANITIZERS,)) if self.options.sanitize else ((), ())
        shared = (*compiler.command, *compiler.flags, *COMMON_FLAGS, *sanitize, *self._prefix_maps())
        link = (*compiler.command, *compiler.link_flags, *LINK_FLAGS, *sanitize_link)
        torch_libraries = (f"-L{self.torch.library_folder}", "-ltorch_cpu")

        ninja.compile_rule("cpu", (*shared, *target, *torch_headers))
        ninja.link_rule("link_cpu", link, torch_libraries)
        ninja.library(CPU_LIBRARY, self.sources.cpu, self.root, compile_rule="cpu", link_rule="link_cpu")

        python_headers = [word for folder in python_include_folders() for word in ("-isystem", folder)]
        ninja.compile_rule("module", (*shared, *target, *python_headers))
        # Python's own symbols are the interpreter's: they stay undefined
        ninja.link_rule("link_module", [word for word in link if word != "-Wl,-z,defs"], ())
        ninja.library(self.module_name, self.sources.module, self.root, compile_rule="module", link_rule="link_module")

        if self.cuda.toolkit is not None:
            self._add_cuda(ninja, self.cuda.toolkit, (*target, *torch_headers), torch_libraries)
        return ninja.text()

    def _add_cuda(
        self, ninja: NinjaFile, toolkit: CudaToolkit, headers: tuple[str, ...], torch_libraries: tuple[str, ...]
    ) -> None:
        host = ("-fPIC", "-fvisibility=hidden", "-Wall", *self._prefix_maps())
        command = [
            str(toolkit.nvcc),
            f"-ccbin={self.compiler.program}",
            "-O3",
            "-std=c++17",
            "-DUSE_CUDA",  # shows the CUDA functions of torch's stable header
            "--expt-relaxed-constexpr",
            *(f"-Xcompiler={flag}" for flag in host),
            *headers,
            # the toolkit's own headers first; those beside torch may be of another minor version
            *(f"-I{folder}" for folder in (toolkit.folder / "include",) if folder.is_dir()),
            "-isystem",
            str(self.torch.nvidia_include_folder),
            "-Xptxas=-v",
        ]
        # the resource report goes to a file beside the object; warnings and errors are shown
        log = f"$out{PTXAS_LOG_SUFFIX}"
        show_rest = f"grep -v -e '^ptxas info' -e '^ *[0-9]* bytes stack frame' {log} >&2"
        ninja.compile_rule("cuda", command, after=f" 2> {log}; status=$$?; {show_rest}; exit $$status", pool="cuda")
        link = [str(toolkit.nvcc), f"-ccbin={self.compiler.program}", "-shared", "-cudart=static", "-nodlink"]
        link += [f"-Xlinker={flag.removeprefix('-Wl,')}" for flag in LINK_FLAGS if flag.startswith("-Wl,")]
        ninja.link_rule("link_cuda", link, (*torch_libraries, "-ltorch_cuda"))
        ninja.library(CUDA_LIBRARY, self.cuda_sources(), self.root, compile_rule="cuda", link_rule="link_cuda")

    def cuda_sources(self) -> list[Source]:
        """The files of libvitfast_cuda.so, each with its architectures and what else only it gets."""
        has_90a = any(item.code == "90a" for item in self.options.architectures)
        has_others = any(item.code != "90a" for item in self.options.architectures)
        # csrc/linear/gemm_launch.cuh asks which kernels there are; assert would slow CUTLASS's down
        products = [f"-DVITFAST_HAS_SM90A={int(has_90a)}", f"-DVITFAST_HAS_SM80={int(has_others)}", "-DNDEBUG"]
        products += ["-isystem", str(self.cuda.cutlass)]
        sources = []
        for source in self.sources.cuda:
            flags = [flag for item in architectures_of(source, self.options.architectures) for flag in item.nvcc_flags]
            if flags:
                sources.append(Source(source.path, (*flags, *(products if uses_cutlass(source) else ()))))
        return sources

    def _prefix_maps(self) -> tuple[str, ...]:
        """Keeps this machine's paths out of the libraries' error messages."""
        folders = [self.root, self.torch.include_folder, *([self.cuda.cutlass] if self.cuda.cutlass else [])]
        return tuple(f"-fmacro-prefix-map={folder}/=" for folder in folders)
