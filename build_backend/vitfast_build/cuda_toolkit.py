"""The CUDA toolkit, CUTLASS, and whether the CUDA library is built."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.options import (
    DEFAULT_ARCHITECTURES,
    MIN_ARCHITECTURE,
    BuildError,
    BuildOptions,
    CudaArchitecture,
    parse_architectures,
)
from vitfast_build.toolchain import TorchInstallation

MIN_TOOLKIT = (12, 0)  # the first that supports sm_90a
_WITHOUT = "or leave CUDA out: export VITFAST_CUDA=0"
_NAME_ANOTHER = f"Name another toolkit (export CUDA_HOME=/usr/local/cuda), {_WITHOUT}"

CUTLASS_VARIABLE = "VITFAST_CUTLASS"
CUTLASS_DISTRIBUTION = "nvidia-cutlass"
MIN_CUTLASS = (4, 2)
# the release used by CI; VITFAST_CUTLASS may name a newer one
CUTLASS_REQUIREMENT = f"{CUTLASS_DISTRIBUTION}=={MIN_CUTLASS[0]}.{MIN_CUTLASS[1]}.*"
_INSTALL_CUTLASS = f'pip install --no-deps "{CUTLASS_REQUIREMENT}"'

_CUTLASS_HEADER = Path("cutlass/cutlass.h")

DRIVER = "libcuda.so.1"
_CAPABILITY_ATTRIBUTES = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class CudaToolkit:
    """An installed CUDA toolkit."""

    folder: Path
    version: tuple[int, int]
    architectures: frozenset[str]  # output of nvcc --list-gpu-arch, such as compute_80

    @property
    def nvcc(self) -> Path:
        """The compiler, never a wrapper script."""
        return self.folder / "bin" / "nvcc"

    @property
    def version_text(self) -> str:
        """Such as ``13.0``."""
        return f"{self.version[0]}.{self.version[1]}"

    def supports(self, architecture: CudaArchitecture) -> bool:
        """Whether nvcc compiles for an architecture; its list omits variants with a suffix: 90a needs 90."""
        names = {f"compute_{architecture.code}", f"compute_{architecture.major}{architecture.minor}"}
        return not self.architectures or not names.isdisjoint(self.architectures)


@dataclass(frozen=True)
class CudaDecision:
    """Whether the CUDA library is built (there is a toolkit), and why, in one line."""

    toolkit: CudaToolkit | None
    reason: str
    cutlass: Path | None = None  # include folder
    architectures: tuple[CudaArchitecture, ...] = ()


def find_toolkit(environment: Mapping[str, str]) -> CudaToolkit | None:
    """Finds the toolkit in CUDA_HOME, or that of nvcc on the PATH, which may be a wrapper script."""
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
        # without that line, the program is in the toolkit's bin folder
        folder = Path(match[1].strip()) if match else Path(program).resolve().parent.parent
    folder = folder.resolve()
    nvcc = folder / "bin" / "nvcc"
    version = re.search(r"release (\d+)\.(\d+)", _run_nvcc(str(nvcc), "--version"))
    if version is None:
        raise BuildError(
            f"{nvcc} --version does not print a release.\nName another toolkit: export CUDA_HOME=/usr/local/cuda"
        )
    architectures = frozenset(re.findall(r"compute_\d+[af]?", _run_nvcc(str(nvcc), "--list-gpu-arch")))
    return CudaToolkit(folder, (int(version[1]), int(version[2])), architectures)


def decide_cuda(options: BuildOptions, torch: TorchInstallation, environment: Mapping[str, str]) -> CudaDecision:
    """Decides whether the CUDA library is built; does not require a GPU.

    Raises:
        BuildError: VITFAST_CUDA=1 and it cannot be built, or nvcc does not support a requested architecture.
    """
    if options.cuda == "0":
        return CudaDecision(None, "VITFAST_CUDA=0")
    if options.sanitize:
        return CudaDecision(None, "VITFAST_SANITIZE=1, which supports CPU code only")
    try:
        toolkit = find_toolkit(environment)
        if toolkit is None:
            raise BuildError(
                "there is no nvcc: CUDA_HOME is unset and nvcc is not on the PATH.\n"
                f"Name the CUDA toolkit's folder: export CUDA_HOME=/usr/local/cuda\n{_WITHOUT}"
            )
        cutlass = find_cutlass(environment)
        if toolkit.version < MIN_TOOLKIT:
            raise BuildError(
                f"nvcc {toolkit.version_text} is older than {MIN_TOOLKIT[0]}.{MIN_TOOLKIT[1]}.\n"
                f"Name a newer toolkit's folder: export CUDA_HOME=/usr/local/cuda-13\n{_WITHOUT}"
            )
        if torch.cuda is None:
            raise BuildError(
                f"torch {torch.version} is a CPU-only build.\n"
                f"Install a torch with CUDA; the build uses the one that is installed, {_WITHOUT}"
            )
        if cutlass is None:
            raise BuildError(
                f"NVIDIA's CUTLASS headers ({CUTLASS_DISTRIBUTION}) are not installed.\n"
                f"Install them; the build uses nothing else of the package: {_INSTALL_CUTLASS}\n"
                f"Or name a copy of CUTLASS: export {CUTLASS_VARIABLE}=/opt/cutlass\n{_WITHOUT}"
            )
    except BuildError as error:
        if options.cuda == "1":
            raise BuildError(f"VITFAST_CUDA=1 requires the CUDA library, but {error}") from error
        reason = str(error).splitlines()[0].removesuffix(".")
        return CudaDecision(None, f"{reason} (VITFAST_CUDA=1 makes this an error)")
    _check_architectures(options, toolkit)
    reason = f"nvcc {toolkit.version_text}"
    if options.architectures:
        return CudaDecision(toolkit, reason, cutlass, options.architectures)
    visible = tuple(item for item in visible_architectures() if toolkit.supports(item))
    if visible:
        return CudaDecision(toolkit, f"{reason}, for the visible GPUs", cutlass, visible)
    return CudaDecision(toolkit, reason, cutlass, parse_architectures(DEFAULT_ARCHITECTURES)[0])


def visible_architectures() -> tuple[CudaArchitecture, ...]:
    """Finds the supported architectures of the GPUs that CUDA_VISIBLE_DEVICES leaves visible; none without a driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return ()
    count, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = set()
    for index in range(count.value):
        capability = []
        for attribute in _CAPABILITY_ATTRIBUTES:
            if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index):
                return ()
            capability.append(value.value)
        found.add(tuple(capability))
    # the kernels for 9.0 need the features of 9.0a
    return tuple(
        CudaArchitecture(major, minor, "a" if (major, minor) == (9, 0) else "")
        for major, minor in sorted(found)
        if (major, minor) >= MIN_ARCHITECTURE
    )


def _check_architectures(options: BuildOptions, toolkit: CudaToolkit) -> None:
    unknown = [item for item in options.architectures if not toolkit.supports(item)]
    if unknown:
        known = ", ".join(sorted(toolkit.architectures, key=lambda name: (len(name), name)))
        raise BuildError(
            f"nvcc {toolkit.version_text} does not support {', '.join(map(str, unknown))}; it supports {known}.\n"
            "Leave it out of the list (export TORCH_CUDA_ARCH_LIST=9.0a), or leave CUDA out: export VITFAST_CUDA=0"
        )


def _run_nvcc(program: str, *arguments: str) -> str:
    try:
        answer = subprocess.run([program, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"{program} does not run: {error}\n{_NAME_ANOTHER}") from error
    # --dryrun of an empty file prints the folders on standard error, whatever its exit code
    if answer.returncode and "--dryrun" not in arguments:
        raise BuildError(f"{program} {' '.join(arguments)} failed:\n{answer.stderr.strip()}\n{_NAME_ANOTHER}")
    return answer.stdout + answer.stderr


def find_cutlass(environment: Mapping[str, str]) -> Path | None:
    """Finds the CUTLASS include folder: in VITFAST_CUTLASS, or in the installed nvidia-cutlass package.

    Only the headers are used: the package need not be importable, nor its dependencies installed.
    """
    named = environment.get(CUTLASS_VARIABLE, "")
    candidates = [Path(named, "include"), Path(named)] if named else _in_distribution()
    folder = next((folder.resolve() for folder in candidates if (folder / _CUTLASS_HEADER).is_file()), None)
    if folder is None and named:
        raise BuildError(
            f"{CUTLASS_VARIABLE}={named} has neither {_CUTLASS_HEADER} nor include/{_CUTLASS_HEADER}.\n"
            f"Name a copy of CUTLASS (export {CUTLASS_VARIABLE}=/opt/cutlass), "
            f"or use the package: unset {CUTLASS_VARIABLE}; {_INSTALL_CUTLASS}"
        )
    if folder is not None:
        _check_version(folder)
    return folder


def _in_distribution() -> list[Path]:
    try:
        files = importlib.metadata.files(CUTLASS_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    # other folders of the package have headers of the same name
    wanted = ("include", *_CUTLASS_HEADER.parts)
    return [Path(str(file.locate())).parents[1] for file in files if file.parts[-len(wanted) :] == wanted]


def _check_version(folder: Path) -> None:
    path = folder / "cutlass/version.h"
    text = path.read_text() if path.is_file() else ""
    found = [re.search(rf"^#define CUTLASS_{part} (\d+)", text, re.MULTILINE) for part in ("MAJOR", "MINOR")]
    version = tuple(int(match[1]) for match in found if match)
    if len(version) != 2 or version < MIN_CUTLASS:
        told = ".".join(map(str, version)) or "of an unknown version"
        wanted = ".".join(map(str, MIN_CUTLASS))
        raise BuildError(
            f"The CUTLASS in {folder} is {told}; vitfast's GEMMs need {wanted} or newer.\n"
            f"Use the package: unset {CUTLASS_VARIABLE}; {_INSTALL_CUTLASS}"
        )
