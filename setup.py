"""Build of the native libraries by ``build_backend/vitfast_build``; the rest is in pyproject.toml."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, __version__, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_backend"))

from vitfast_build.commands import BuildNative, BuildPython
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.toolchain import check_setuptools

try:
    check_setuptools(__version__)
    options = BuildOptions.from_environment(os.environ)
except BuildError as error:
    raise SystemExit(f"error: {error}") from None

setup(
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    # vitfast._C represents all three artefacts; an extension module makes the wheel specific to Python and platform
    ext_modules=[] if options.build == "none" else [Extension("vitfast._C", ["csrc/module.cpp"])],
)
