"""VITFAST_LIBRARIES: libraries that are compiled once for several builds."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from vitfast_build import backend
from vitfast_build.backend import get_requires_for_build_wheel
from vitfast_build.commands import describe_build
from vitfast_build.native_build import MODULE, NativeBuild
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.shared_libraries import SharedLibraries
from vitfast_build.sources import CPU_LIBRARY


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions.from_environment({"VITFAST_CUDA": "0", "VITFAST_LIBRARIES": str(tmp_path / "libraries")})


def _find(project: NativeBuild, options: BuildOptions, **environment: str) -> SharedLibraries:
    shared = SharedLibraries.find(project.root, options, {"PATH": "/usr/bin:/bin", **environment})
    assert shared is not None
    return shared


def _fill(project: NativeBuild, options: BuildOptions) -> dict[str, object]:
    """Puts a library into the folder as a build would; returns the description of the build."""
    compiled = project.root / "compiled"
    compiled.mkdir()
    (compiled / CPU_LIBRARY).write_text("a library")
    build = describe_build(options, project)
    _find(project, options).write(build, compiled)
    return build


def test_a_second_build_takes_the_libraries_of_the_first(project: NativeBuild, options: BuildOptions) -> None:
    assert _find(project, options).read() is None
    build = _fill(project, options)
    shared = _find(project, options)
    assert shared.read() == build
    assert (shared.folder / CPU_LIBRARY).read_text() == "a library"


def test_other_sources_flags_and_options_are_compiled_again(project: NativeBuild, options: BuildOptions) -> None:
    build = _fill(project, options)
    assert _find(project, options, CXXFLAGS="-g").read() is None
    assert _find(project, dataclasses.replace(options, sanitize=True)).read() is None
    header = project.root / "csrc/answer.h"
    before = header.read_text()
    header.write_text("constexpr int answer = 43;\n")
    assert _find(project, options).read() is None
    header.write_text(before)
    assert _find(project, options).read() == build
    (project.root / "build_backend").mkdir()
    (project.root / "build_backend/flags.py").write_text("FLAGS = ()\n")
    assert _find(project, options).read() is None


def test_a_toolkit_asks_for_a_cuda_library(project: NativeBuild, options: BuildOptions) -> None:
    """A build without CUDA, because its torch had none, does not serve one that may have it."""
    build = _fill(project, options)
    shared = _find(project, options)
    assert dataclasses.replace(shared, wants_cuda=True).read() is None
    assert dataclasses.replace(shared, wants_cuda=False).read() == build


@pytest.mark.parametrize("damage", ["missing library", "unreadable record"])
def test_an_incomplete_folder_is_compiled_again(project: NativeBuild, options: BuildOptions, damage: str) -> None:
    _fill(project, options)
    shared = _find(project, options)
    if damage == "missing library":
        (shared.folder / CPU_LIBRARY).unlink()
    else:
        (shared.folder / "build.json").write_text("{")
    assert shared.read() is None


def test_only_the_module_is_compiled_beside_existing_libraries(
    project: NativeBuild, options: BuildOptions, clean_environment: dict[str, str], tmp_path: Path
) -> None:
    build = NativeBuild.plan(project.root, options, clean_environment, only_module=True)
    assert build.artefacts == [MODULE]
    build.run(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.so")] == [MODULE]


def test_without_the_variable_nothing_is_shared(project: NativeBuild) -> None:
    for environment in ({}, {"VITFAST_BUILD": "none", "VITFAST_LIBRARIES": "/libraries"}):
        options = BuildOptions.from_environment(environment)
        assert SharedLibraries.find(project.root, options, {"PATH": "/nowhere"}) is None


def test_the_backend_asks_for_torch_only_to_compile_the_libraries(
    root: Path,
    options: BuildOptions,
    clean_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def missing() -> None:
        raise BuildError("torch is not installed")

    monkeypatch.setenv("VITFAST_CUDA", "0")
    monkeypatch.setenv("VITFAST_LIBRARIES", str(options.libraries))
    monkeypatch.setattr(backend, "find_torch", missing)
    assert get_requires_for_build_wheel() == ["torch>=2.11", "pybind11>=2.12", "ninja"]
    (tmp_path / CPU_LIBRARY).write_text("a library")
    shared = SharedLibraries.find(root, options, os.environ)
    assert shared is not None
    shared.write({"cpu_library": True, "cuda_library": False}, tmp_path)
    assert get_requires_for_build_wheel() == ["pybind11>=2.12", "ninja"]
