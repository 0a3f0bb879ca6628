"""Each instruction set that this CPU supports, forced by VITFAST_ISA in a new process."""

from __future__ import annotations

import pytest
import torch

from support.operators import OPERATORS
from support.subprocesses import TESTS, run_python

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


def _available() -> tuple[str, ...]:
    """Uses torch's detection, which checks the same features."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": INSTRUCTION_SETS, "AVX2": INSTRUCTION_SETS[:2]}.get(capability, INSTRUCTION_SETS[:1])


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_operator_is_right_on(instruction_set: str) -> None:
    if not OPERATORS[0].is_compiled:
        pytest.skip("pure PyTorch: there are no kernels to choose between")
    if instruction_set not in _available():
        pytest.skip(f"this CPU ({torch.backends.cpu.get_cpu_capability()}) lacks {instruction_set}")
    finished = run_python(str(TESTS / "support" / "check_operators.py"), VITFAST_ISA=instruction_set)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.split() == [instruction_set, "ok"]


def test_an_unknown_instruction_set_is_a_clear_error() -> None:
    finished = run_python("-c", "from vitfast import ops", VITFAST_ISA="nonsense")
    assert finished.returncode != 0
    last_line = finished.stderr.strip().splitlines()[-1]
    assert "VITFAST_ISA" in last_line
    assert "nonsense" in last_line
    assert all(name in last_line for name in ("auto", *INSTRUCTION_SETS)), last_line
