"""The setuptools commands: build_py without leftovers, and build_ext that runs ninja."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from vitfast_build import build_config
from vitfast_build.errors import BuildError
from vitfast_build.native_build import NativeBuild
from vitfast_build.options import BuildOptions
from vitfast_build.sources import CPU_LIBRARY, CUDA_LIBRARY

PACKAGE = "vitfast"


class BuildPython(build_py):
    """Copies the package's Python files, and nothing that an earlier build left behind."""

    def run(self) -> None:
        """Starts from an empty folder; without a native build, says so in _build_config.py."""
        target = Path(self.build_lib) / PACKAGE
        if not self.editable_mode:
            shutil.rmtree(target, ignore_errors=True)
        super().run()
        if not self.distribution.ext_modules:
            build = build_config.describe(BuildOptions.from_environment(os.environ), None)
            in_place = Path(self.get_package_dir(PACKAGE))
            if self.editable_mode:
                _remove_artefacts(in_place, keep=())
            build_config.write(build, in_place if self.editable_mode else target)
            print(build_config.summary(build))

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Leaves out the _build_config.py of a build in place: each build writes its own."""
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if f"{module[1]}.py" != build_config.FILE_NAME]


class BuildNative(build_ext):
    """Compiles the libraries and the module by ninja and puts them into the package."""

    def run(self) -> None:
        """Plans, compiles, copies, and prints what was decided."""
        sys.stdout.flush()
        try:
            native = NativeBuild.plan(_root(), BuildOptions.from_environment(os.environ), os.environ)
            folder = self._object_folder()
            native.run(folder)
        except BuildError as error:
            raise SystemExit(f"error: {error}") from None
        package = self._package_folder()
        package.mkdir(parents=True, exist_ok=True)
        _remove_artefacts(package, keep=native.artefacts)
        for name in native.artefacts:
            _replace(folder / name, package / name)
        build = build_config.describe(native.options, native)
        build_config.write(build, package)
        print(build_config.summary(build, native.jobs.total), flush=True)

    def get_outputs(self) -> list[str]:
        """The files as they lie in a wheel."""
        return sorted(self.get_output_mapping()) if self.inplace else [str(path) for path in self._built_files()]

    def get_output_mapping(self) -> dict[str, str]:
        """For an editable installation: where the wheel's files lie in the source tree."""
        if not self.inplace:
            return {}
        library = Path(self.build_lib) / PACKAGE
        return {str(library / path.name): str(path.relative_to(_root())) for path in self._built_files()}

    def get_source_files(self) -> list[str]:
        """MANIFEST.in names the sources."""
        return []

    def _object_folder(self) -> Path:
        """Where ninja works, and finds next time what need not be compiled again."""
        if self.editable_mode:
            # setuptools would take a temporary folder
            return _root() / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}" / PACKAGE
        return Path(self.build_temp).resolve() / PACKAGE

    def _package_folder(self) -> Path:
        return _root() / PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE

    def _built_files(self) -> list[Path]:
        folder = self._package_folder()
        config = folder / build_config.FILE_NAME
        return sorted([*folder.glob("*.so"), *([config] if config.exists() else [])])


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _remove_artefacts(folder: Path, *, keep: tuple[str, ...] | list[str]) -> None:
    """Removes the libraries of an earlier build that this one does not make."""
    for name in (CPU_LIBRARY, CUDA_LIBRARY):
        if name not in keep:
            (folder / name).unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    """Copies under another name, then renames: a process that has loaded the old library keeps it whole."""
    temporary = target.with_name(f"{target.name}.new")
    shutil.copy2(source, temporary)
    temporary.replace(target)
