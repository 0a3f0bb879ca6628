"""The setuptools commands build_py and build_ext, and the description of the build in vitfast/_build_config.py."""

from __future__ import annotations

import os
import platform
import pprint
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from vitfast_build.native_build import MODULE, NativeBuild
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.shared_libraries import SharedLibraries, libraries_of, replace_file
from vitfast_build.sources import CPU_LIBRARY, CUDA_LIBRARY, ROOT
from vitfast_build.toolchain import MIN_TORCH

PACKAGE = "vitfast"
BUILD_CONFIG = "_build_config.py"


class BuildPython(build_py):
    """Copies the package's Python files into an empty folder; writes _build_config.py if there is no native build."""

    def run(self) -> None:
        target = Path(self.build_lib) / PACKAGE
        if not self.editable_mode:
            shutil.rmtree(target, ignore_errors=True)
        super().run()
        if not self.distribution.ext_modules:
            build = describe_build(BuildOptions.from_environment(os.environ), None)
            in_place = Path(self.get_package_dir(PACKAGE))
            if self.editable_mode:
                _remove_artefacts(in_place, keep=())
            write_build(build, in_place if self.editable_mode else target)
            print(build_summary(build))

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Excludes the _build_config.py of a build in place; each build writes its own."""
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if f"{module[1]}.py" != BUILD_CONFIG]


class BuildNative(build_ext):
    """Compiles the libraries and the module with ninja and copies them into the package."""

    def run(self) -> None:
        sys.stdout.flush()
        try:
            options = BuildOptions.from_environment(os.environ)
            shared = SharedLibraries.find(ROOT, options, os.environ)
            build = shared.read() if shared else None
            native = NativeBuild.plan(ROOT, options, os.environ, only_module=build is not None)
            compiled = self._object_folder()
            native.run(compiled)
        except BuildError as error:
            raise SystemExit(f"error: {error}") from None
        libraries = compiled
        if shared and build:
            libraries = shared.folder
            print(f"vitfast: libraries of VITFAST_LIBRARIES={libraries}, not compiled again")
        else:
            build = describe_build(options, native)
            if shared:
                shared.write(build, compiled)
        package = self._package_folder()
        package.mkdir(parents=True, exist_ok=True)
        _remove_artefacts(package, keep=libraries_of(build))
        for file in (*(libraries / name for name in libraries_of(build)), compiled / MODULE):
            replace_file(file, package / file.name)
        write_build(build, package)
        print(build_summary(build, native.jobs.total), flush=True)

    def get_outputs(self) -> list[str]:
        return sorted(self.get_output_mapping()) if self.inplace else [str(path) for path in self._built_files()]

    def get_output_mapping(self) -> dict[str, str]:
        """Maps files of the wheel to files of the source tree, for editable installations."""
        if not self.inplace:
            return {}
        library = Path(self.build_lib) / PACKAGE
        return {str(library / path.name): str(path.relative_to(ROOT)) for path in self._built_files()}

    def get_source_files(self) -> list[str]:
        """Nothing: MANIFEST.in lists the sources."""
        return []

    def _object_folder(self) -> Path:
        if self.editable_mode:  # setuptools would use a temporary folder, without the objects of the last build
            return ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}" / PACKAGE
        return Path(self.build_temp).resolve() / PACKAGE

    def _package_folder(self) -> Path:
        return ROOT / PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE

    def _built_files(self) -> list[Path]:
        folder = self._package_folder()
        config = folder / BUILD_CONFIG
        return sorted([*folder.glob("*.so"), *([config] if config.exists() else [])])


def _remove_artefacts(folder: Path, *, keep: Collection[str]) -> None:
    """Removes libraries of an earlier build that this one does not produce."""
    for name in (CPU_LIBRARY, CUDA_LIBRARY):
        if name not in keep:
            (folder / name).unlink(missing_ok=True)


def describe_build(options: BuildOptions, native: NativeBuild | None) -> dict[str, Any]:
    """Describes a build, or pure PyTorch if ``native`` is None, as JSON values without paths of this machine."""
    toolkit = native.cuda.toolkit if native else None
    notes = []
    if toolkit and options.left_out:
        left_out = ", ".join(map(str, options.left_out))
        notes.append(f"TORCH_CUDA_ARCH_LIST: left out {left_out}; the kernels require compute capability 8.0 or newer")
    if native and options.sanitize:
        notes.append("VITFAST_SANITIZE: with AddressSanitizer and UBSan: slow, requires LD_PRELOAD of libasan.so")
    return {
        "cpu_library": native is not None,
        "cuda_library": toolkit is not None,
        "instruction_sets": list(native.sources.instruction_sets) if native else [],
        "cuda_architectures": [str(item) for item in native.cuda.architectures] if native else [],
        "cuda_reason": native.cuda.reason if native else options.pure_reason,
        "notes": notes,
        "torch": native.torch.version if native and native.torch else None,
        "torch_at_least": ".".join(map(str, MIN_TORCH)),
        "compiler": native.compiler.version if native else None,
        "nvcc": toolkit.version_text if toolkit else None,
        "machine": platform.machine(),
    }


def write_build(build: dict[str, Any], folder: Path) -> None:
    """Writes _build_config.py, which vitfast.build_info() reads, into the package ``folder``."""
    text = pprint.pformat(build, width=110, sort_dicts=False)
    (folder / BUILD_CONFIG).write_text(
        '"""Description of the build, generated by the build and returned by vitfast.build_info()."""\n\n'
        f"BUILD = {text}\n"
    )


def build_summary(build: dict[str, Any], jobs: int | None = None) -> str:
    """The text printed at the end of a build."""
    if not build["cpu_library"]:
        return f"vitfast: pure PyTorch, nothing compiled ({build['cuda_reason']}): correct, but slow"
    lines = [
        f"vitfast: built against torch {build['torch']} by {build['compiler']}, for torch >= {build['torch_at_least']}",
        f"  CPU library: {', '.join(build['instruction_sets'])}",
    ]
    if build["cuda_library"]:
        lines.append(f"  CUDA library: {'; '.join(build['cuda_architectures'])} by {build['cuda_reason']}")
    else:
        lines.append(f"  CUDA library: not built: {build['cuda_reason']}")
    lines += [f"  {note}" for note in build["notes"]]
    if jobs is not None:
        lines.append(f"  parallel compilers: {jobs}")
    return "\n".join(lines)
