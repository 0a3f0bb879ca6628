"""No call of a raw operator crashes the process: valid calls with one argument changed, in a process of their own."""

from __future__ import annotations

import sys

import pytest

from support.sample import fuzz_seed
from support.subprocesses import run_python
from vitfast.ops.library import has_kernel

if not has_kernel("packed", "cpu"):
    pytest.skip("pure PyTorch: there are no raw operators", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip("limits memory as Linux does", allow_module_level=True)


@pytest.mark.parametrize("count", [300, pytest.param(200_000, marks=pytest.mark.slow)])
def test_no_call_ends_the_process(count: int) -> None:
    result = run_python("-m", "support.mutated_calls", f"{fuzz_seed()}-{count}", str(count))
    last = result.stdout.splitlines()[-1:]
    assert last == ["end"], f"exit code {result.returncode} in call {last}\n{result.stderr[-2000:]}"
