"""The test programs also compile for a GPU."""

from __future__ import annotations

import os

import pytest

from support import simt
from vitfast_build.cuda_toolkit import find_toolkit


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(path.stem for path in (simt.SIMT / "programs").glob("*.cpp")))
def test_a_program_compiles_for_a_gpu(program: str) -> None:
    if find_toolkit(os.environ) is None:
        pytest.skip("no nvcc")
    assert simt.build(program, "cuda").exists()
