"""The PEP 517 backend of setuptools, with build requirements that depend on what is built.

Nothing is required for a source distribution, nor for pure PyTorch (VITFAST_BUILD=none, or a system other than Linux);
no torch where the environment that pip installs into has one, of which the build uses headers and libraries, nor where
VITFAST_LIBRARIES has the compiled libraries. The nvidia-cutlass package is required only if nvcc is
used: it depends on scipy and other packages that the build does not need, and PEP 517 cannot request a package without
its dependencies. VITFAST_CUTLASS names an existing copy instead.
"""

from __future__ import annotations

import os
from typing import Any

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from vitfast_build.cuda_toolkit import CUTLASS_REQUIREMENT, CUTLASS_VARIABLE, find_toolkit
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.shared_libraries import SharedLibraries
from vitfast_build.sources import ROOT
from vitfast_build.toolchain import find_torch

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The packages that pip installs before it builds a wheel or an editable installation."""
    try:
        options = BuildOptions.from_environment(os.environ)
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None
    if options.build == "none":
        return []
    requirements = ["pybind11>=2.12", "ninja"]
    try:
        shared = SharedLibraries.find(ROOT, options, os.environ)
        if shared and shared.read():
            return requirements
        uses_nvcc = options.cuda != "0" and find_toolkit(os.environ) is not None
    except BuildError:  # the build itself reports a missing compiler or a broken toolkit
        uses_nvcc = False
    try:
        find_torch()
    except BuildError:  # none, or too old
        requirements.insert(0, "torch>=2.11")
    if uses_nvcc and not os.environ.get(CUTLASS_VARIABLE):
        requirements.append(CUTLASS_REQUIREMENT)
    return requirements


get_requires_for_build_editable = get_requires_for_build_wheel
