"""Which part of the CPU engine a sample belongs to. Sampling itself needs perf: benchmarks/cpu_shares.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from support.scripts import load_script
from vitfast.config import load_options
from vitfast.errors import UserError

cpu_shares = load_script("cpu_shares")
OTHER, PARTS, WAITING = cpu_shares.OTHER, cpu_shares.PARTS, cpu_shares.WAITING
ISA = "vitfast::avx512"


@pytest.mark.parametrize(
    ("part", "frames"),
    [
        ("GEMM", [f"void {ISA}::multiply_tile<{ISA}::FloatDot, 6>(unsigned int const*, long)"]),
        ("activation", [f"float __vector(16) {ISA}::exp2<(Accuracy)1>(float __vector(16))",
                        f"float __vector(16) {ISA}::activate<(vitfast::Activation)1, (Accuracy)1>(float __vector(16))",
                        f"void {ISA}::finish_rows<false>(Tile const&, long, long)"]),
        ("epilogue", [f"{ISA}::store(float*, float __vector(16))", f"void {ISA}::finish_rows<false>(Tile const&)"]),
        ("attention GEMM", [f"void {ISA}::multiply_panel<{ISA}::FloatDot, 6, 4, {ISA}::LogitSink>(long)"]),
        ("GEMM", [f"void {ISA}::multiply_panel<(vitfast::Precision)0>({ISA}::Operand const&)"]),
        ("attention GEMM", [f"void {ISA}::TiledHead::multiply_keys<true, {ISA}::TiledHead::Exponentiation>(long)"]),
        ("softmax", [f"{ISA}::TiledHead::Exponentiation::take_some()", f"{ISA}::TiledHead::multiply_keys<true>(long)"]),
        (OTHER, ["vitfast::(anonymous namespace)::packed_blocks(Tensor const&)"]),
        (OTHER, ["??"]),
    ],
)  # fmt: skip
def test_the_innermost_function_that_is_known_takes_a_sample(part: str, frames: list[str]) -> None:
    assert cpu_shares.part_of(frames) == part


def test_functions_of_the_parts_are_in_the_sources() -> None:
    sources = (Path(__file__).parents[2] / "csrc").glob("*/*.h")
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in sources)))
    assert {name for names in PARTS.values() for name in names} - words == set()


def test_a_library_without_line_tables_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_shares, "_output", lambda *command, **_: "")
    monkeypatch.setattr(cpu_shares.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(cpu_shares, "LIBRARY", Path(sys.executable))
    with pytest.raises(UserError, match="CXXFLAGS=-g1"):
        cpu_shares.run_cpu_shares(cpu_shares.CpuSharesOptions())


def test_options_are_checked_and_the_table_has_every_part() -> None:
    with pytest.raises(UserError, match="precision"):
        load_options(cpu_shares.CpuSharesOptions, ["precision=fp8"], "benchmarks/cpu_shares.py")
    shares = {part: 0.1 for part in (*PARTS, OTHER, WAITING)}
    table = cpu_shares.markdown("a machine", [{"model": "m", "batch": 1, "precision": "fp32", "shares": shares}])
    assert table.count("10.0 %") == len(shares)
