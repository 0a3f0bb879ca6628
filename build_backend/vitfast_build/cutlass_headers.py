"""NVIDIA's CUTLASS headers, which the CUDA products are compiled with.

They come with the nvidia-cutlass package, of which the build reads nothing but its headers: the package need not be
importable, and its own dependencies need not be installed.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path

from vitfast_build.errors import BuildError

VARIABLE = "VITFAST_CUTLASS"
DISTRIBUTION = "nvidia-cutlass"
MIN_CUTLASS = (4, 2)
# the release that CI compiles with; VITFAST_CUTLASS may name a newer one
REQUIREMENT = f"{DISTRIBUTION}=={MIN_CUTLASS[0]}.{MIN_CUTLASS[1]}.*"
HOW_TO_INSTALL = f'pip install --no-deps "{REQUIREMENT}"'

_HEADER = Path("cutlass/cutlass.h")
_VERSION_HEADER = Path("cutlass/version.h")


def find_cutlass(environment: Mapping[str, str]) -> Path | None:
    """Finds the folder that holds ``cutlass/cutlass.h``: VITFAST_CUTLASS's, else that of the installed package.

    Returns:
        The folder for the compiler's include path, or None if there are no such headers.

    Raises:
        BuildError: VITFAST_CUTLASS names a folder without them, or they are too old.
    """
    named = environment.get(VARIABLE, "")
    folder = _in_checkout(Path(named)) if named else _in_distribution()
    if folder is None:
        if not named:
            return None
        raise BuildError(
            f"{VARIABLE}={named} has neither {_HEADER} nor include/{_HEADER}.\n"
            f"Name a copy of CUTLASS (export {VARIABLE}=/opt/cutlass), or use the package: unset {VARIABLE}; "
            f"{HOW_TO_INSTALL}"
        )
    _check_version(folder)
    return folder


def _in_checkout(root: Path) -> Path | None:
    return next((folder.resolve() for folder in (root / "include", root) if (folder / _HEADER).is_file()), None)


def _in_distribution() -> Path | None:
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    # the package's tools have headers of the same name, in other folders
    wanted = ("include", *_HEADER.parts)
    headers = (Path(str(file.locate())) for file in files if file.parts[-len(wanted) :] == wanted)
    return next((header.parents[1] for header in headers if header.is_file()), None)


def _check_version(folder: Path) -> None:
    path = folder / _VERSION_HEADER
    text = path.read_text() if path.is_file() else ""
    found = [re.search(rf"^#define CUTLASS_{part} (\d+)", text, re.MULTILINE) for part in ("MAJOR", "MINOR")]
    version = tuple(int(match[1]) for match in found if match)
    if len(version) != 2 or version < MIN_CUTLASS:
        told = ".".join(map(str, version)) or "of an unknown version"
        wanted = ".".join(map(str, MIN_CUTLASS))
        raise BuildError(
            f"The CUTLASS in {folder} is {told}; vitfast's products need {wanted} or newer.\n"
            f"Use the package: unset {VARIABLE}; {HOW_TO_INSTALL}"
        )
