"""The CUDA toolkit, and whether the CUDA library is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.cutlass_headers import DISTRIBUTION, HOW_TO_INSTALL, VARIABLE, find_cutlass
from vitfast_build.errors import BuildError
from vitfast_build.options import BuildOptions
from vitfast_build.torch_installation import TorchInstallation

MIN_TOOLKIT = (12, 0)  # the first that knows sm_90a
_HOW_TO_DEMAND = "(VITFAST_CUDA=1 makes this an error)"


@dataclass(frozen=True)
class CudaToolkit:
    """An installed CUDA toolkit.

    Attributes:
        folder: its root.
        version: major and minor version.
        architectures: what ``nvcc --list-gpu-arch`` names, such as ``compute_80``.
    """

    folder: Path
    version: tuple[int, int]
    architectures: frozenset[str]

    @property
    def nvcc(self) -> Path:
        """The compiler itself, never a wrapper script."""
        return self.folder / "bin" / "nvcc"

    @property
    def version_text(self) -> str:
        """The version as people write it: ``13.0``."""
        return f"{self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class CudaDecision:
    """Whether the CUDA library is built, and why.

    Attributes:
        toolkit: the toolkit to build with, or None.
        reason: one line for the user.
        cutlass: the folder of NVIDIA's CUTLASS headers, where there is a toolkit to build with.
    """

    toolkit: CudaToolkit | None
    reason: str
    cutlass: Path | None = None


def find_toolkit(environment: Mapping[str, str]) -> CudaToolkit | None:
    """Finds the toolkit of CUDA_HOME, else that of the nvcc on the PATH, which may be a wrapper script.

    Raises:
        BuildError: CUDA_HOME is set, but there is no nvcc in it; or nvcc does not run.
    """
    home = environment.get("CUDA_HOME", "")
    if home:
        folder = Path(home)
        if not (folder / "bin" / "nvcc").exists():
            raise BuildError(
                f"CUDA_HOME={home} has no bin/nvcc.\n"
                "Name the toolkit's folder (export CUDA_HOME=/usr/local/cuda), or use that on the PATH: unset CUDA_HOME"
            )
    else:
        program = shutil.which("nvcc", path=environment.get("PATH", os.defpath))
        if program is None:
            return None
        match = re.search(r"^#\$ TOP=(.*)$", _run_nvcc(program, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
        # without that line: the program lies in the toolkit's bin folder
        folder = Path(match[1].strip()) if match else Path(program).resolve().parent.parent
    folder = folder.resolve()
    nvcc = folder / "bin" / "nvcc"
    version = re.search(r"release (\d+)\.(\d+)", _run_nvcc(str(nvcc), "--version"))
    if version is None:
        raise BuildError(
            f"{nvcc} --version does not tell a release.\nName another toolkit: export CUDA_HOME=/usr/local/cuda"
        )
    architectures = frozenset(re.findall(r"compute_\d+[af]?", _run_nvcc(str(nvcc), "--list-gpu-arch")))
    return CudaToolkit(folder, (int(version[1]), int(version[2])), architectures)


def decide_cuda(options: BuildOptions, torch: TorchInstallation, environment: Mapping[str, str]) -> CudaDecision:
    """Decides whether the CUDA library is built; a GPU is never asked for.

    Raises:
        BuildError: VITFAST_CUDA=1 and it cannot be built, with the command that mends it; or nvcc does not know an
            architecture of the list.
    """
    if options.cuda == "0":
        return CudaDecision(None, "VITFAST_CUDA=0")
    if options.sanitize:
        return CudaDecision(None, "VITFAST_SANITIZE=1, which is for code of the CPU")
    try:
        toolkit = find_toolkit(environment)
        cutlass = find_cutlass(environment) if toolkit is not None else None
    except BuildError as error:
        if options.cuda == "1":
            raise
        return CudaDecision(None, f"{str(error).splitlines()[0]} {_HOW_TO_DEMAND}")
    obstacle = _obstacle(toolkit, torch, cutlass)
    if obstacle is not None:
        reason, remedy = obstacle
        if options.cuda == "1":
            raise BuildError(f"VITFAST_CUDA=1 demands the CUDA library, but {reason}.\n{remedy}")
        return CudaDecision(None, f"{reason} {_HOW_TO_DEMAND}")
    assert toolkit is not None
    _check_architectures(options, toolkit)
    return CudaDecision(toolkit, f"nvcc {toolkit.version_text}", cutlass)


def _obstacle(toolkit: CudaToolkit | None, torch: TorchInstallation, cutlass: Path | None) -> tuple[str, str] | None:
    """Says what stands in the way of the CUDA library and how to mend it, or None."""
    without = "or leave CUDA out: export VITFAST_CUDA=0"
    if toolkit is None:
        return (
            "there is no nvcc: CUDA_HOME is unset and nvcc is not on the PATH",
            f"Name the CUDA toolkit's folder: export CUDA_HOME=/usr/local/cuda\n{without}",
        )
    if toolkit.version < MIN_TOOLKIT:
        wanted = f"{MIN_TOOLKIT[0]}.{MIN_TOOLKIT[1]}"
        return (
            f"nvcc {toolkit.version_text} is older than {wanted}",
            f"Name a newer toolkit's folder: export CUDA_HOME=/usr/local/cuda-13\n{without}",
        )
    if torch.cuda is None:
        return (
            f"torch {torch.version} is a CPU-only build",
            f"Install a torch with CUDA, then build against it: pip install --no-build-isolation .\n{without}",
        )
    if cutlass is None:
        return (
            f"NVIDIA's CUTLASS headers ({DISTRIBUTION}) are not installed",
            f"Install them, the build reads nothing else of the package: {HOW_TO_INSTALL}\n"
            f"Or name a copy of CUTLASS: export {VARIABLE}=/opt/cutlass\n{without}",
        )
    return None


def _check_architectures(options: BuildOptions, toolkit: CudaToolkit) -> None:
    # --list-gpu-arch leaves out the variants with a suffix: 90a is there where 90 is
    unknown = [
        item
        for item in options.architectures
        if not {f"compute_{item.code}", f"compute_{item.major}{item.minor}"} & toolkit.architectures
    ]
    if unknown and toolkit.architectures:
        known = ", ".join(sorted(toolkit.architectures, key=lambda name: (len(name), name)))
        raise BuildError(
            f"nvcc {toolkit.version_text} does not know {', '.join(map(str, unknown))}; it knows {known}.\n"
            "Leave it out of the list (export TORCH_CUDA_ARCH_LIST=9.0a), or leave CUDA out: export VITFAST_CUDA=0"
        )


def _run_nvcc(program: str, *arguments: str) -> str:
    try:
        answer = subprocess.run([program, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(
            f"{program} does not run: {error}\nName another toolkit (export CUDA_HOME=/usr/local/cuda), "
            "or leave CUDA out: export VITFAST_CUDA=0"
        ) from error
    # --dryrun of an empty file tells the folders on standard error, whatever its exit code
    if answer.returncode and "--dryrun" not in arguments:
        raise BuildError(
            f"{program} {' '.join(arguments)} failed:\n{answer.stderr.strip()}\nName another toolkit (export "
            "CUDA_HOME=/usr/local/cuda), or leave CUDA out: export VITFAST_CUDA=0"
        )
    return answer.stdout + answer.stderr
