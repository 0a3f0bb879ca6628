"""Libraries that several builds share: compiled once, they load under every Python and every torch from 2.11 on.

The folder of VITFAST_LIBRARIES holds them with the description of their build and a hash of what determines their code.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitfast_build.cuda_toolkit import CUTLASS_VARIABLE, find_toolkit, visible_architectures
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.sources import CPU_LIBRARY, CUDA_LIBRARY
from vitfast_build.toolchain import find_compiler

_RECORD = "build.json"
# of csrc, and of build_backend, which holds the flags
_SOURCE_SUFFIXES = (".cpp", ".h", ".cu", ".cuh", ".py")


@dataclass(frozen=True)
class SharedLibraries:
    """The folder of VITFAST_LIBRARIES."""

    folder: Path
    key: str  # hash of sources, flags and tools
    wants_cuda: bool

    @classmethod
    def find(cls, root: Path, options: BuildOptions, environment: Mapping[str, str]) -> SharedLibraries | None:
        """Finds the folder for a build of the sources below ``root``; None without VITFAST_LIBRARIES."""
        if options.libraries is None or options.build == "none":
            return None
        compiler = find_compiler(environment)
        try:
            toolkit = None if options.cuda == "0" or options.sanitize else find_toolkit(environment)
        except BuildError:  # the build reports it
            toolkit = None
        settings: list[object] = [platform.machine(), options.sanitize, compiler.version]
        settings += [compiler.flags, compiler.link_flags]
        if toolkit is not None:
            settings += [toolkit.version_text, options.architectures or visible_architectures()]
            settings.append(environment.get(CUTLASS_VARIABLE, ""))
        digest = hashlib.sha256(repr(settings).encode())
        for folder in ("csrc", "build_backend"):
            for path in sorted((root / folder).rglob("*")):
                if path.suffix in _SOURCE_SUFFIXES:
                    digest.update(f"\n{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
        return cls(options.libraries, digest.hexdigest(), toolkit is not None)

    def read(self) -> dict[str, Any] | None:
        """Reads the description of the libraries; None if there are none, or of other sources, flags or tools."""
        try:
            record = json.loads((self.folder / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        build: dict[str, Any] = record["build"]
        complete = all((self.folder / name).exists() for name in libraries_of(build))
        # a torch without CUDA prevents a CUDA library; the torch of this build may have it
        complete &= build["cuda_library"] or not self.wants_cuda
        return build if complete and record["key"] == self.key else None

    def write(self, build: dict[str, Any], compiled: Path) -> None:
        """Copies the libraries in the folder ``compiled`` and the description of their ``build`` into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _RECORD).unlink(missing_ok=True)
        for name in libraries_of(build):
            replace_file(compiled / name, self.folder / name)
        (self.folder / _RECORD).write_text(json.dumps({"key": self.key, "build": build}, indent=2) + "\n")


def libraries_of(build: Mapping[str, Any]) -> list[str]:
    """The file names of the libraries of a described build."""
    built = {CPU_LIBRARY: build["cpu_library"], CUDA_LIBRARY: build["cuda_library"]}
    return [name for name in built if built[name]]


def replace_file(source: Path, target: Path) -> None:
    """Copies and renames atomically: processes that have loaded the old library keep it."""
    temporary = target.with_name(f"{target.name}.new")
    shutil.copy2(source, temporary)
    temporary.replace(target)
