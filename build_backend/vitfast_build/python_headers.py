"""The headers of Python and pybind11, for the module vitfast._C."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import sysconfig
from pathlib import Path

from vitfast_build.errors import BuildError


def python_include_folders() -> list[str]:
    """Finds the folders of Python.h and pybind11.h.

    Raises:
        BuildError: one of them is missing.
    """
    python = sysconfig.get_paths()["include"]
    if not (Path(python) / "Python.h").exists():
        raise BuildError(
            f"{python} has no Python.h: this Python was installed without its headers.\n"
            f"Install them: apt-get install python{sys.version_info.major}.{sys.version_info.minor}-dev"
        )
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError(
            f"pybind11 is not installed.\nInstall it: {shlex.quote(sys.executable)} -m pip install pybind11\n"
            "or let pip bring it for the build: leave out --no-build-isolation"
        )
    import pybind11

    return [python, pybind11.get_include()]
