"""The host compiler and ninja."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.errors import BuildError

MIN_SETUPTOOLS = 77  # the first that knows license = "…" and license-files
_COMPILERS = ("c++", "g++", "clang++")
_LAUNCHERS = ("ccache", "sccache", "distcc")


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler.

    Attributes:
        command: the words of the command, a compiler cache included.
        version: the first line of ``--version``.
        flags: CXXFLAGS; they come before our own, so that ours win.
        link_flags: LDFLAGS.
    """

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """The compiler itself, which nvcc takes as its host compiler."""
        return next((word for word in self.command if Path(word).name not in _LAUNCHERS), self.command[0])


def find_compiler(environment: Mapping[str, str]) -> Compiler:
    """Finds the C++ compiler: CXX, else c++, g++ or clang++ of the PATH.

    Raises:
        BuildError: there is none, or it does not run.
    """
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
                "or install vitfast in pure PyTorch, right but slow: export VITFAST_BUILD=none"
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
    """Checks that the compiler is GCC and has AddressSanitizer's library, which tests preload into Python.

    Raises:
        BuildError: it is another one, or lacks the library.
    """
    answer = subprocess.run(
        [compiler.program, "-print-file-name=libasan.so"], env=dict(environment), capture_output=True, text=True
    )
    # what GCC does not find it prints as it was given; clang's library has another name
    if answer.returncode or not Path(answer.stdout.strip()).is_absolute():
        raise BuildError(
            f"VITFAST_SANITIZE=1 needs g++ with its libasan.so, which {compiler.program} has not.\n"
            "Name one that has (export CXX=g++; apt-get install libasan8 or dnf install libasan), "
            "or build as usual: unset VITFAST_SANITIZE"
        )


def find_ninja(environment: Mapping[str, str]) -> str:
    """Finds ninja: the Python package's, else that of the PATH.

    Raises:
        BuildError: there is none.
    """
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        program = Path(ninja.BIN_DIR) / "ninja"
        if program.exists():
            return str(program)
    found = shutil.which("ninja", path=environment.get("PATH", os.defpath))
    if found is None:
        raise BuildError(
            f"ninja is not installed.\nInstall it: {shlex.quote(sys.executable)} -m pip install ninja\n"
            "or let pip bring it for the build: leave out --no-build-isolation"
        )
    return found


def check_setuptools(version: str) -> None:
    """Checks that setuptools understands pyproject.toml.

    Raises:
        BuildError: it is older than 77, as in an environment that Python 3.11 or older has just made.
    """
    if int(version.split(".")[0]) < MIN_SETUPTOOLS:
        raise BuildError(
            f"setuptools {version} is too old: vitfast's pyproject.toml needs setuptools >= {MIN_SETUPTOOLS}.\n"
            f'Upgrade it: {shlex.quote(sys.executable)} -m pip install --upgrade "setuptools>={MIN_SETUPTOOLS}"\n'
            "or let pip bring it for the build: leave out --no-build-isolation"
        )


def check_platform(system: str = sys.platform) -> None:
    """Checks that the libraries can be built on this operating system.

    Raises:
        BuildError: it is not Linux.
    """
    if not system.startswith("linux"):
        raise BuildError(
            f"vitfast's kernels are built on Linux; this is {system}.\n"
            "Install it in pure PyTorch, right but slow: set the environment variable VITFAST_BUILD=none"
        )


def is_x86(machine: str | None = None) -> bool:
    """True on 64-bit x86, which has more than one instruction set to compile for."""
    return (machine or platform.machine()).lower() in ("x86_64", "amd64")
