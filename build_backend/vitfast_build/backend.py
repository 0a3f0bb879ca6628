"""The PEP 517 backend: setuptools', whose build requirements depend on what is built.

With VITFAST_BUILD=none a build needs neither torch nor ninja, nor does a source distribution. NVIDIA's CUTLASS headers
are asked for only where nvcc is used: the nvidia-cutlass package brings scipy and other things that the build does not
need, and PEP 517 cannot ask for a package without them. VITFAST_CUTLASS names a copy that is there already.
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

from vitfast_build import cutlass_headers
from vitfast_build.cuda_toolkit import find_toolkit
from vitfast_build.errors import BuildError
from vitfast_build.options import BuildOptions

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
    """What pip installs before it builds a wheel, besides setuptools."""
    return _native_requirements()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What pip installs before it builds an editable installation, besides setuptools."""
    return _native_requirements()


def _native_requirements() -> list[str]:
    try:
        options = BuildOptions.from_environment(os.environ)
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None
    if options.build == "none":
        return []
    requirements = ["torch>=2.11", "pybind11>=2.12", "ninja"]
    if _uses_nvcc(options) and not os.environ.get(cutlass_headers.VARIABLE):
        requirements.append(cutlass_headers.REQUIREMENT)
    return requirements


def _uses_nvcc(options: BuildOptions) -> bool:
    """Whether the CUDA library may be built: a broken toolkit is told by the build itself."""
    try:
        return options.cuda != "0" and find_toolkit(os.environ) is not None
    except BuildError:
        return False
