from __future__ import annotations

from pathlib import Path

import pytest

from vitfast_build.resources import KernelResources, main, parse_report

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstPf' for 'sm_90a'
ptxas info    : Function properties for _Z5firstPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 400 bytes cmem[0]
ptxas info    : Compile time = 25.0 ms
ptxas info    : Compiling entry function '_Z6secondPf' for 'sm_80'
ptxas info    : Function properties for _Z6secondPf
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def test_each_kernel_is_read_with_its_own_figures() -> None:
    assert parse_report(REPORT) == [
        KernelResources("_Z5firstPf", "sm_90a", 40, 0, 0),
        KernelResources("_Z6secondPf", "sm_80", 255, 16, 12),
    ]


def test_a_spill_and_a_missing_report_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no .ptxas report" in capsys.readouterr().err
    first, second = REPORT.split("ptxas info    : Compile time")
    (tmp_path / "a.cu.o.ptxas").write_text(first)
    assert main([str(tmp_path)]) == 0
    (tmp_path / "b.cu.o.ptxas").write_text(second)
    assert main([str(tmp_path)]) == 1
    assert "2 kernels, 1 of them spill" in capsys.readouterr().out
