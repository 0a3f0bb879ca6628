"""Fixtures of the build tests."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

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
    own = ("VITFAST_CUDA", "VITFAST_BUILD", "VITFAST_CUTLASS", "VITFAST_SANITIZE", "MAX_JOBS", "TORCH_CUDA_ARCH_LIST")
    for name in (*own, "CUDA_HOME", "CXX", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return dict(os.environ)
