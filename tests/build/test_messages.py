"""Build errors: setup.py and the PEP 517 backend end with one message, without a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REQUIREMENTS = "import vitfast_build.backend as b; print(b.get_requires_for_build_wheel())"


def _run(root: Path, code: str, environment: dict[str, str], **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**environment, "PYTHONPATH": str(root / "build_backend"), **changes},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"VITFAST_CUDA": "maybe"}, "error: VITFAST_CUDA='maybe' is not known; allowed: auto, 1, 0."),
        ({"VITFAST_BUILD": "half"}, "error: VITFAST_BUILD='half' is not known; allowed: all, none."),
        ({"TORCH_CUDA_ARCH_LIST": "sm_90"}, "error: TORCH_CUDA_ARCH_LIST='sm_90': 'sm_90' is no architecture"),
        ({"MAX_JOBS": "many"}, "error: MAX_JOBS='many' is no positive number"),
        ({"PATH": "/nowhere"}, "error: No C++ compiler"),
        ({"VITFAST_CUDA": "1", "CUDA_HOME": "/nowhere"}, "the CUDA library, but CUDA_HOME="),
    ],
)
def test_setup_py_ends_with_one_message(
    root: Path, tmp_path: Path, clean_environment: dict[str, str], variables: dict[str, str], message: str
) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['setup.py', '-q', 'build_ext', '--build-temp={tmp_path}',"
        f" '--build-lib={tmp_path}']; runpy.run_path('setup.py', run_name='__main__')"
    )
    result = _run(root, code, clean_environment, **variables)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_no_torch_ends_with_one_message(root: Path, tmp_path: Path, clean_environment: dict[str, str]) -> None:
    # an environment without build isolation that has setuptools, but no torch
    code = (
        "import importlib.util, runpy, sys; find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more);"
        "from vitfast_build import toolchain; toolchain._find_outside_build_environment = lambda package: '';"
        f"sys.argv = ['setup.py', '-q', 'build_ext', '--build-temp={tmp_path}', '--build-lib={tmp_path}'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    result = _run(root, code, clean_environment)
    assert result.returncode == 1
    assert "error: torch is not installed for" in result.stderr
    assert 'pip install "torch>=2.11" pybind11 ninja' in result.stderr
    assert "Traceback" not in result.stderr


def test_the_backend_asks_for_torch_only_where_there_is_none_and_something_is_compiled(
    root: Path, clean_environment: dict[str, str]
) -> None:
    native = "['pybind11>=2.12', 'ninja']"
    assert _run(root, REQUIREMENTS, clean_environment, VITFAST_CUDA="0").stdout.strip() == native
    without_torch = "import vitfast_build.toolchain as t; t.MIN_TORCH = (9, 0); " + REQUIREMENTS
    native = "['torch>=2.11', 'pybind11>=2.12', 'ninja']"
    assert _run(root, without_torch, clean_environment, VITFAST_CUDA="0").stdout.strip() == native
    assert _run(root, REQUIREMENTS, clean_environment, VITFAST_BUILD="none").stdout.strip() == "[]"
    refused = _run(root, REQUIREMENTS, clean_environment, VITFAST_BUILD="some")
    assert refused.returncode == 1
    assert "error: VITFAST_BUILD='some' is not known" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_backend_asks_for_cutlass_only_where_nvcc_is_used(
    root: Path, tmp_path: Path, program: Callable[..., Path], clean_environment: dict[str, str]
) -> None:
    nvcc = program("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'", folder="cuda/bin")
    with_nvcc = {"CUDA_HOME": str(nvcc.parents[1])}
    answer = _run(root, REQUIREMENTS, clean_environment, **with_nvcc).stdout
    assert answer.strip().endswith("'ninja', 'nvidia-cutlass==4.2.*']")
    for without in (
        {"PATH": str(tmp_path)},
        {"CUDA_HOME": str(tmp_path)},  # the build itself tells that there is no nvcc
        {**with_nvcc, "VITFAST_CUDA": "0"},
        {**with_nvcc, "VITFAST_BUILD": "none"},
        {**with_nvcc, "VITFAST_CUTLASS": "/opt/cutlass"},
    ):
        result = _run(root, REQUIREMENTS, clean_environment, **without)
        assert result.returncode == 0
        assert "cutlass" not in result.stdout
