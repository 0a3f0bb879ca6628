"""The C++ compiler, ninja, torch and the headers of Python. Checks raise BuildError."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.options import BuildError

MIN_SETUPTOOLS = 77  # the first that supports license = "…" and license-files
_COMPILERS = ("c++", "g++", "clang++")
_LAUNCHERS = ("ccache", "sccache", "distcc")
MIN_TORCH = (2, 11)
# version of the stable ABI: the libraries load under this torch and every later one
TORCH_TARGET_VERSION = f"0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"


def _needs_package(problem: str, packages: str, verb: str = "Install it") -> BuildError:
    return BuildError(
        f"{problem}.\n{verb}: {shlex.quote(sys.executable)} -m pip install {packages}\n"
        "or let pip bring it for the build: leave out --no-build-isolation"
    )


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler."""

    command: tuple[str, ...]  # with a compiler cache, if any
    version: str  # the first line of --version
    flags: tuple[str, ...] = ()  # CXXFLAGS; they precede the build's flags, which therefore take precedence
    link_flags: tuple[str, ...] = ()  # LDFLAGS

    @property
    def program(self) -> str:
        """The compiler without a cache: nvcc's host compiler."""
        return next((word for word in self.command if Path(word).name not in _LAUNCHERS), self.command[0])


def find_compiler(environment: Mapping[str, str]) -> Compiler:
    """Finds the C++ compiler: CXX, or the first of c++, g++ and clang++ on the PATH."""
    named = environment.get("CXX", "")
    path = environment.get("PATH", os.defpath)
    command = tuple(shlex.split(named))
    if not command:
        found = next((program for program in _COMPILERS if shutil.which(program, path=path)), None)
        if found is None:
            raise BuildError(
                f"No C++ compiler: none of {', '.join(_COMPILERS)} is on the PATH.\n"
                "Install one (apt-get install g++, or dnf install gcc-c++, or conda install cxx-compiler), name one "
                "(export CXX=/path/to/g++),\n"
                "or install vitfast in pure PyTorch, correct but slow: export VITFAST_BUILD=none"
            )
        command = (found,)
    try:
        answer = subprocess.run([*command, "--version"], env=dict(environment), capture_output=True, text=True)
        failure = answer.stderr.strip() if answer.returncode else ""
    except OSError as error:
        answer, failure = None, str(error)
    if answer is None or answer.returncode:
        raise BuildError(
            f"The C++ compiler {shlex.join(command)}{' (from CXX)' if named else ''} does not run: {failure}\n"
            "Name one that does: export CXX=g++"
        )
    return Compiler(
        command,
        answer.stdout.splitlines()[0] if answer.stdout else shlex.join(command),
        tuple(shlex.split(environment.get("CXXFLAGS", ""))),
        tuple(shlex.split(environment.get("LDFLAGS", ""))),
    )


def check_sanitizers(compiler: Compiler, environment: Mapping[str, str]) -> None:
    """Checks that the compiler is GCC with AddressSanitizer's shared library, which tests preload into Python."""
    answer = subprocess.run(
        [compiler.program, "-print-file-name=libasan.so"], env=dict(environment), capture_output=True, text=True
    )
    # GCC prints the bare name of a library that it does not find; clang's library has another name
    if answer.returncode or not Path(answer.stdout.strip()).is_absolute():
        raise BuildError(
            f"VITFAST_SANITIZE=1 needs g++ with its libasan.so, which {compiler.program} has not.\n"
            "Name one that has (export CXX=g++; apt-get install libasan8 or dnf install libasan), "
            "or build as usual: unset VITFAST_SANITIZE"
        )


def find_ninja(environment: Mapping[str, str]) -> str:
    """Finds ninja: the Python package, or the program on the PATH."""
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        program = Path(ninja.BIN_DIR) / "ninja"
        if program.exists():
            return str(program)
    found = shutil.which("ninja", path=environment.get("PATH", os.defpath))
    if found is None:
        raise _needs_package("ninja is not installed", "ninja")
    return found


def check_setuptools(version: str) -> None:
    """Checks that setuptools supports the license fields of pyproject.toml."""
    if int(version.split(".")[0]) < MIN_SETUPTOOLS:
        problem = f"setuptools {version} is too old: vitfast's pyproject.toml needs setuptools >= {MIN_SETUPTOOLS}"
        raise _needs_package(problem, f'--upgrade "setuptools>={MIN_SETUPTOOLS}"', "Upgrade it")


def is_x86(machine: str | None = None) -> bool:
    """Whether the machine is 64-bit x86, which has several instruction sets to compile for."""
    return (machine or platform.machine()).lower() in ("x86_64", "amd64")


@dataclass(frozen=True)
class TorchInstallation:
    """An installed torch."""

    folder: Path
    version: str  # such as 2.15.0+cu132
    cuda: str | None  # CUDA version of torch, None for a CPU-only build

    @property
    def nvidia_include_folder(self) -> Path:
        """The headers of the CUDA libraries installed with torch; the folder may not exist."""
        major = (self.cuda or "").split(".")[0]
        return self.folder.parent / "nvidia" / f"cu{major}" / "include"


def find_torch() -> TorchInstallation:
    """Finds the torch of this Python without importing it, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    origin = spec.origin if spec else _find_outside_build_environment("torch")
    if not origin:
        problem = f"torch is not installed for {sys.executable}, and vitfast is compiled against it"
        raise _needs_package(problem, f'"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}" pybind11 ninja')
    return read_torch(Path(origin).parent)


def _find_outside_build_environment(package: str) -> str:
    """Finds a package of the environment that pip installs into: pip hides it from the build by PYTHONPATH alone."""
    code = f"import importlib.util; print(getattr(importlib.util.find_spec({package!r}), 'origin', ''))"
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def read_torch(folder: Path) -> TorchInstallation:
    """Reads the version of the torch in ``folder`` and checks that it is supported."""
    path = folder / "version.py"
    text = path.read_text() if path.exists() else ""
    version = re.search(r"^__version__\s*(?::[^=]*)?=\s*['\"]((\d+)\.(\d+)[^'\"]*)['\"]", text, re.MULTILINE)
    if version is None:
        raise BuildError(
            f"The torch in {folder} has no readable version.\nReinstall it: pip install --force-reinstall torch"
        )
    if (int(version[2]), int(version[3])) < MIN_TORCH:
        wanted = ".".join(str(number) for number in MIN_TORCH)
        raise BuildError(
            f"torch {version[1]} is too old: vitfast needs torch >= {wanted}, whose stable ABI it is compiled for.\n"
            f'Upgrade it: pip install --upgrade "torch>={wanted}"'
        )
    cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return TorchInstallation(folder, version[1], cuda[1] if cuda else None)


def python_include_folders() -> list[str]:
    """Finds the include folders of Python and pybind11."""
    python = sysconfig.get_paths()["include"]
    if not (Path(python) / "Python.h").exists():
        raise BuildError(
            f"{python} has no Python.h: this Python was installed without its headers.\n"
            f"Install them: apt-get install python{sys.version_info.major}.{sys.version_info.minor}-dev"
        )
    if importlib.util.find_spec("pybind11") is None:
        raise _needs_package("pybind11 is not installed", "pybind11")
    import pybind11

    return [python, pybind11.get_include()]
