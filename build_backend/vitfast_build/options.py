"""The environment variables that control the build, and the build's exception."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MIN_ARCHITECTURE = (8, 0)
# for a build without a GPU: sm_90a code runs on compute capability 9.0 only; newer GPUs run the PTX of 8.0
DEFAULT_ARCHITECTURES = "8.0+PTX;9.0a"

_ARCHITECTURE = re.compile(r"(\d{1,2})\.(\d)([af]?)(\+PTX)?")


class BuildError(Exception):
    """A failed build. The message is for the user: what is wrong, and the command that fixes it."""


@dataclass(frozen=True)
class CudaArchitecture:
    """One entry of TORCH_CUDA_ARCH_LIST, such as ``9.0a`` or ``8.0+PTX``."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    @property
    def code(self) -> str:
        """The number as nvcc spells it: ``90a`` in ``sm_90a`` and ``compute_90a``."""
        return f"{self.major}{self.minor}{self.suffix}"

    @property
    def nvcc_flags(self) -> list[str]:
        """The -gencode options: machine code, and PTX if the entry asks for it."""
        flags = [f"-gencode=arch=compute_{self.code},code=sm_{self.code}"]
        if self.ptx:
            flags.append(f"-gencode=arch=compute_{self.code},code=compute_{self.code}")
        return flags

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"


@dataclass(frozen=True)
class BuildOptions:
    """The build options of the user."""

    cuda: str  # VITFAST_CUDA: auto builds the CUDA library if possible, 1 requires it, 0 disables it
    build: str  # VITFAST_BUILD: none installs pure PyTorch
    max_jobs: int | None  # MAX_JOBS, the maximum number of parallel compilers; None derives it from cores and memory
    architectures: tuple[CudaArchitecture, ...]  # TORCH_CUDA_ARCH_LIST from 8.0 up; empty if unset
    left_out: tuple[CudaArchitecture, ...] = ()  # its entries below 8.0, which the kernels do not support
    sanitize: bool = False  # VITFAST_SANITIZE=1: AddressSanitizer and UBSan, for tests; excludes the CUDA library
    pure_reason: str = ""  # why nothing is compiled
    libraries: Path | None = None  # VITFAST_LIBRARIES: folder of compiled libraries that builds share

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], system: str | None = None) -> BuildOptions:
        """Parses the environment variables; an empty variable counts as unset.

        Args:
            environment: The environment variables.
            system: As sys.platform, its default. Only on Linux something is compiled.

        Raises:
            BuildError: A value is invalid.
        """
        cuda = _choice(environment, "VITFAST_CUDA", "auto", "1", "0")
        build = _choice(environment, "VITFAST_BUILD", "all", "none")
        sanitize = _choice(environment, "VITFAST_SANITIZE", "0", "1") == "1"
        system = system or sys.platform
        if build == "none":
            pure_reason, unset = "VITFAST_BUILD=none", "unset VITFAST_BUILD, or "
        elif not system.startswith("linux"):
            build, pure_reason, unset = "none", f"the kernels need Linux, and this is {system}", ""
        else:
            pure_reason, unset = "", ""
        for setting, chosen in (("VITFAST_CUDA=1", cuda == "1"), ("VITFAST_SANITIZE=1", sanitize)):
            if pure_reason and chosen:
                raise BuildError(
                    f"{setting} requires compiled kernels, but nothing is compiled: {pure_reason}.\n"
                    f"Change the settings: {unset}unset {setting.partition('=')[0]}"
                )
        if sanitize and cuda == "1":
            raise BuildError(
                "VITFAST_SANITIZE=1 compiles the CPU library with sanitizers, but VITFAST_CUDA=1 requires CUDA code.\n"
                "Unset one of them: unset VITFAST_SANITIZE, or unset VITFAST_CUDA"
            )
        architectures = environment.get("TORCH_CUDA_ARCH_LIST", "").strip()
        supported, left_out = parse_architectures(architectures) if architectures else ((), ())
        max_jobs = _max_jobs(environment.get("MAX_JOBS", ""))
        libraries = _absolute_folder(environment, "VITFAST_LIBRARIES")
        return cls(cuda, build, max_jobs, supported, left_out, sanitize, pure_reason, libraries)


def parse_architectures(text: str) -> tuple[tuple[CudaArchitecture, ...], tuple[CudaArchitecture, ...]]:
    """Parses TORCH_CUDA_ARCH_LIST: entries such as ``9.0a`` or ``8.0+PTX``, separated by spaces, commas or semicolons.

    Returns:
        The supported architectures, and the unsupported ones (below 8.0).

    Raises:
        BuildError: An entry is malformed, or no entry is supported.
    """
    parsed = []
    for entry in re.split(r"[\s;,]+", text.strip()):
        match = _ARCHITECTURE.fullmatch(entry)
        if match is None:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST={text!r}: {entry!r} is no architecture; allowed are entries such as 8.0, 8.9+PTX"
                f' or 9.0a, separated by semicolons.\nLike this: export TORCH_CUDA_ARCH_LIST="{DEFAULT_ARCHITECTURES}"'
            )
        major, minor, suffix, ptx = match.groups()
        parsed.append(CudaArchitecture(int(major), int(minor), suffix, ptx is not None))
    supported = tuple(item for item in dict.fromkeys(parsed) if (item.major, item.minor) >= MIN_ARCHITECTURE)
    left_out = tuple(item for item in dict.fromkeys(parsed) if item not in supported)
    if not supported:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST={text!r} names no architecture from 8.0 (A100) up; vitfast's kernels need one.\n"
            f'Use export TORCH_CUDA_ARCH_LIST="{DEFAULT_ARCHITECTURES}", or leave CUDA out: export VITFAST_CUDA=0'
        )
    return supported, left_out


def _choice(environment: Mapping[str, str], name: str, *choices: str) -> str:
    value = environment.get(name, "") or choices[0]
    if value not in choices:
        raise BuildError(
            f"{name}={value!r} is not known; allowed: {', '.join(choices)}.\n"
            f"Use export {name}={choices[0]}, which is the default"
        )
    return value


def _absolute_folder(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name, "")
    # pip and build run the backend in folders of their own
    if text and not Path(text).is_absolute():
        raise BuildError(f"{name}={text!r} is no absolute path.\nLike this: export {name}=$PWD/{text}")
    return Path(text) if text else None


def _max_jobs(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]+", text) or int(text) == 0:
        raise BuildError(
            f"MAX_JOBS={text!r} is no positive number of compilers that may run at a time.\n"
            "Use export MAX_JOBS=2, or leave it to cores and memory: unset MAX_JOBS"
        )
    return int(text)
