"""Fixtures of the build tests."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vitfast_build.native_build import NativeBuild
from vitfast_build.options import BuildOptions

BUILD_VARIABLES = (
    *("VITFAST_CUDA", "VITFAST_BUILD", "VITFAST_CUTLASS", "VITFAST_LIBRARIES", "VITFAST_SANITIZE"),
    *("MAX_JOBS", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX", "CXXFLAGS"),
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Path]:
    """Writes an executable shell script ``name`` into a separate folder and returns its path."""

    def write(name: str, body: str, folder: str = "programs") -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without the build's own variables; changes reach the process's environment, too."""
    for name in BUILD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return dict(os.environ)


@pytest.fixture
def project(tmp_path: Path, clean_environment: dict[str, str]) -> NativeBuild:
    """A project with the file names that the build looks for; a space in its path must not matter."""
    root = tmp_path / "a project"
    (root / "csrc/cpu").mkdir(parents=True)
    (root / "csrc/answer.h").write_text("constexpr int answer = 41;\n")
    (root / "csrc/library.cpp").write_text(
        '#include "csrc/answer.h"\n'
        'extern "C" __attribute__((visibility("default"))) int get_answer() { return answer; }\n'
        'extern "C" __attribute__((visibility("default"))) const char* get_file() { return __FILE__; }\n'
    )
    (root / "csrc/cpu/other.cpp").write_text("int hidden() { return 1; }\n")
    (root / "csrc/module.cpp").write_text('extern "C" void PyInit__C() {}\n')
    return NativeBuild.plan(root, BuildOptions.from_environment({"VITFAST_CUDA": "0"}), clean_environment)
