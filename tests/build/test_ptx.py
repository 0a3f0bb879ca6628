from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vitfast_build.ptx import main

PTXAS = r"""
case "$2" in
-arch=sm_120) spilled=8 ;;
*) spilled=0 ;;
esac
cat >&2 <<REPORT
ptxas info    : Compiling entry function '_Z5firstPf' for '${2#-arch=}'
    0 bytes stack frame, $spilled bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers
REPORT
"""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: Callable[..., Path]) -> Path:
    """A build folder with one object file, whose PTX a program extracts."""
    nvcc = 'if [ "$1" = --version ]; then echo "release 13.0"; else echo compute_90; fi'
    monkeypatch.setenv("CUDA_HOME", str(program("nvcc", nvcc, "toolkit/bin").parents[1]))
    program("nvdisasm", "", "toolkit/bin")
    program("cuobjdump", "echo .version 9.0 > a.ptx", "toolkit/bin")
    program("ptxas", PTXAS, "toolkit/bin")
    (tmp_path / "build").mkdir()
    (tmp_path / "build/a.cu.o.ptxas").touch()
    return tmp_path / "build"


def test_ptx_is_assembled_for_newer_gpus(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(built)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sm_120       8 bytes spilled  _Z5firstPf",
        "sm_100: 1 kernels assembled",
        "sm_120: 1 kernels assembled",
    ]


def test_ptx_that_is_refused_or_missing_is_an_error(
    built: Path, program: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    program("ptxas", "echo no such instruction >&2; exit 1", "toolkit/bin")
    assert main([str(built)]) == 1
    assert "no such instruction" in capsys.readouterr().err
    program("cuobjdump", "", "toolkit/bin")
    assert main([str(built)]) == 1
    assert "TORCH_CUDA_ARCH_LIST=8.0+PTX" in capsys.readouterr().err
