"""Each instruction set that this CPU supports, forced by VITFAST_ISA in a new process."""

from __future__ import annotations

import pytest
import torch

import vitfast
from support.operators import OPERATORS
from support.subprocesses import TESTS, run_python

_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
NEEDS = {
    "baseline": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": _AVX512,
    "avx512_vnni": (*_AVX512, "avx512vnni"),
    "avx512_bf16": (*_AVX512, "avx512vnni", "avx512bf16"),
    "avx512_amx": (*_AVX512, "avx512vnni", "avx512bf16", "avx512vbmi", "amx-tile", "amx-bf16", "amx-int8"),
}


@pytest.mark.parametrize("instruction_set", NEEDS)
def test_every_operator_is_right_on(instruction_set: str) -> None:
    if not OPERATORS[0].is_compiled:
        pytest.skip("pure PyTorch: there are no kernels to choose between")
    missing = set(NEEDS[instruction_set]) - set(vitfast.build_info()["cpu"]["features"])
    if missing:
        pytest.skip(f"this CPU lacks an instruction set: {', '.join(sorted(missing))}")
    active = torch.ops.vitfast.cpu_capability()
    if instruction_set == active:
        return  # all other tests run on it
    # of the sets that extend AVX-512 only the packed operators have kernels of their own
    is_extension = instruction_set.split("_")[0] == active.split("_")[0]
    checks = ["packed"] if is_extension else ["public", "packed"]
    script = str(TESTS / "support" / "check_operators.py")
    finished = run_python(script, *checks, VITFAST_ISA=instruction_set)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.split() == [instruction_set, *checks, "ok"]


def test_an_unknown_instruction_set_is_a_clear_error() -> None:
    finished = run_python("-c", "from vitfast import ops", VITFAST_ISA="nonsense")
    assert finished.returncode != 0
    last_line = finished.stderr.strip().splitlines()[-1]
    assert "VITFAST_ISA" in last_line
    assert "nonsense" in last_line
    assert all(name in last_line for name in ("auto", *NEEDS)), last_line
