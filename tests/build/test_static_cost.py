from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitfast_build import static_cost
from vitfast_build.sass import costs_by_loop, parse_sass
from vitfast_build.static_cost import TABLE, hot_kernels, main

# a loop of three loads and an mma, with a loop of one store inside it; code for diverged warps follows the EXIT
SASS = """
\tcode for sm_90a
\t\tFunction : {name}
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;            /* 0x00000a00ff017b82 */
                                                                     /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x0000000402047981 */
        /*0020*/                   LDSM.16.M88.4 R8, [R3] ;          /* 0x000000000308783b */
        /*0030*/                   LDG.E.U16 R20, desc[UR4][R2.64] ; /* 0x0000000402147981 */
        /*0040*/                   HMMA.16816.F32 R12, R8, R6, R12 ; /* 0x000000060808723c */
        /*0050*/                   BRA.DIV UR6, 0xd0 ;               /* 0x0000003606587947 */
        /*0060*/                   STS.64 [R3], R12 ;                /* 0x000000ff03007388 */
        /*0070*/               @P0 BRA 0x60 ;                        /* 0xfffffffc0 */
        /*0080*/                   MUFU.EX2 R9, R9 ;                 /* 0x0000000900097308 */
        /*0090*/                   IADD3 R20, R20, 0x1, RZ ;         /* 0x0000000114147810 */
        /*00a0*/              @!P1 BRA 0x10 ;                        /* 0xfffffffc0 */
        /*00b0*/                   STG.E desc[UR4][R2.64], R9 ;      /* 0x0000000902007986 */
        /*00c0*/                   EXIT ;                            /* 0x000000000000794d */
        /*00d0*/                   MUFU.RCP R9, R9 ;                 /* 0x0000000900097308 */
        /*00e0*/                   BRA 0x60 ;                        /* 0xfffffffc0 */
        /*00f0*/                   BRA 0xf0;                         /* 0xfffffffc0 */
"""


def test_each_loop_has_the_cost_of_one_iteration() -> None:
    (code,) = parse_sass(SASS.format(name="kernel")).values()
    costs = {loop: cost.as_dict() for loop, cost in costs_by_loop(code, "sm_90a").items()}
    assert costs == {
        "0": {"issue": 3, "global_bytes": 128},
        "1": {
            # 16 x 8 x 16 multiply-adds at 512 * 0.62 per cycle; the mma reads R6 of the first load and R8 of the second
            **{"issue": 8, "tensor_cycles": 6.5, "shared_cycles": 4, "special_cycles": 8, "global_bytes": 576},
            # R20 of the third load is read after six instructions
            **{"early_global_loads": 2, "early_shared_loads": 1},
        },
        "1.1": {"issue": 2, "shared_cycles": 2},
    }
    (code,) = parse_sass(SASS.format(name="kernel").replace("IADD3 R20, R20", "IADD3 R20, R21")).values()
    assert costs_by_loop(code, "sm_90a")["1"].early_global_loads == 1


def test_wgmma_has_its_own_rate() -> None:
    (code,) = parse_sass(SASS.format(name="kernel").replace("HMMA.16816.F32", "HGMMA.64x192x16.F32")).values()
    assert costs_by_loop(code, "sm_90a")["1"].tensor_cycles == 96.0


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: Callable[..., Path]) -> Path:
    """A build folder with one hot kernel, disassembled by a program that prints SASS; the table is in tmp_path."""
    monkeypatch.setattr(static_cost, "TABLE", tmp_path / "static_cost.json")
    monkeypatch.setattr(static_cost, "HOT_KERNELS", ("first_kernel<float>",))
    mangled = "_ZN7vitfast12first_kernelIfEEvPf"
    nvcc = 'if [ "$1" = --version ]; then echo "release 13.0"; else echo compute_90; fi'
    monkeypatch.setenv("CUDA_HOME", str(program("nvcc", nvcc, "toolkit/bin").parents[1]))
    program("nvdisasm", "", "toolkit/bin")
    program("cuobjdump", f"cat <<'SASS'\n{SASS.format(name=mangled)}\nSASS", "toolkit/bin")
    (tmp_path / "build").mkdir()
    (tmp_path / "build/a.cu.o.ptxas").write_text(
        f"ptxas info    : Compiling entry function '{mangled}' for 'sm_90a'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 0 barriers\n"
    )
    return tmp_path / "build"


def test_a_change_is_printed_and_fails(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(built)]) == 0
    assert main([str(built), "--check"]) == 0
    table = json.loads(static_cost.TABLE.read_text())
    table["kernels"]["sm_90a"]["first_kernel<float>"]["1"]["issue"] = 9
    static_cost.TABLE.write_text(json.dumps(table))
    capsys.readouterr()
    assert main([str(built), "--check"]) == 1
    assert "sm_90a first_kernel<float> loop 1: issue 9 -> 8" in capsys.readouterr().out
    # another compiler generates other code
    static_cost.TABLE.write_text(json.dumps({**table, "nvcc": "12.8"}))
    assert main([str(built), "--check"]) == 0


def test_a_kernel_that_is_not_in_the_build_is_an_error(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(static_cost, "HOT_KERNELS", ("first_kernel<float>", "second_kernel<float>"))
    assert main([str(built)]) == 1
    assert "no kernel second_kernel<float>" in capsys.readouterr().err
    (built / "a.cu.o.ptxas").unlink()
    assert main([str(built), "--check"]) == 1
    assert "build with VITFAST_CUDA=1 first" in capsys.readouterr().err


def test_a_kernel_beyond_the_instruction_cache_is_an_error(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(static_cost, "MAX_INSTRUCTIONS", 12)
    assert main([str(built)]) == 1
    assert "first_kernel<float> for sm_90a has 13 instructions, more than" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_committed_table_has_all_hot_kernels(architecture: str) -> None:
    assert sorted(json.loads(TABLE.read_text())["kernels"][architecture]) == sorted(hot_kernels(architecture))
