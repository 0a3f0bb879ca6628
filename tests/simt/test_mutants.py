"""Faults planted in the attention kernel are found, and by what is recorded: none of the layers is redundant.

The layers: ``results`` (against float64), ``address`` (AddressSanitizer), ``race``, ``pending`` and ``uninitialized``
(the check of shared memory), ``runtime`` (the emulation itself, and the guards behind outputs). docs/kernels.md shows
the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from support import simt
from support.simt_attention import AttentionCase, dominant_case, negative_case, random_case

KERNEL = "csrc/attention/attention_forward_kernel.cuh"
SOFTMAX = "csrc/attention/attention_softmax.cuh"


@dataclass(frozen=True)
class Mutant:
    """A change of a source, and which layers find it."""

    name: str
    file: str
    old: str
    new: str
    found_by: frozenset[str]


def mutant(name: str, file: str, old: str, new: str, *found_by: str) -> Mutant:
    return Mutant(name, file, old, new, frozenset(found_by))


MUTANTS = (
    mutant("no tail mask", SOFTMAX, "const bool hidden = tile", "const bool hidden = false && tile", "results"),
    mutant("mask off by one", SOFTMAX, "i % 2 >= tokens;", "i % 2 > tokens;", "results"),
    mutant("keys: no barrier", KERNEL, "the values may be under way\n      sync_threads();", "\n", "race"),
    mutant(
        "values: no barrier",
        KERNEL,
        "queries may be under way\n      sync_threads();",
        "\n",
        "results",
        "race",
        "pending",
    ),
    mutant("queries: no sync_warp", KERNEL, "sync_warp();  // every lane has read", "// every lane has read", "race"),
    mutant(
        "result: no sync_warp",
        KERNEL,
        "  sync_warp();\n  for (int i = lane;",
        "  for (int i = lane;",
        "results",
        "uninitialized",
    ),
    mutant(
        "keys: early read",
        KERNEL,
        "wait_for_copies<1>();  // queries",
        "wait_for_copies<2>();  // queries",
        "results",
        "pending",
    ),
    mutant(
        "values: early read",
        KERNEL,
        "wait_for_copies<1>();  // the values",
        "wait_for_copies<2>();  // ",
        "results",
        "pending",
    ),
    mutant("fragment swapped", KERNEL, "(logits[tile], a, b[0], b[1])", "(logits[tile], a, b[1], b[0])", "results"),
    mutant(
        "stride of keys",
        KERNEL,
        "rows + tile * 8 * head_dim",
        "rows + tile * 8 * (head_dim + 8)",
        "results",
        "address",
        "uninitialized",
    ),
    mutant("copies row N", KERNEL, "row < count && chunk * Tile", "row <= count && chunk * Tile", "results", "address"),
    mutant("writes row N", KERNEL, "row < count && chunk * 8", "row <= count && chunk * 8", "address", "runtime"),
    mutant(
        "one row short",
        KERNEL,
        "keys = shared.take<T>(heads_per_block * padded_keys * head_dim)",
        "keys = shared.take<T>((heads_per_block * padded_keys - 1) * head_dim)",
        "address",
    ),
    mutant(
        "tail not zeroed", KERNEL, "    copy_async(tile", "    if (inside) copy_async(tile", "results", "uninitialized"
    ),
)


def cases() -> list[AttentionCase]:
    """Calls on which every mutant shows."""
    return [
        random_case(2, 1, 197, 64),
        negative_case(197, 64),
        dominant_case(101, 64),
        random_case(2, 3, 17, 64),
    ]


def found_by(replaced: dict[str, str]) -> frozenset[str]:
    """Builds every variant of a mutant, runs the cases and says which layers have found something."""
    layers = set()
    for variant in ("plain", "address", "race"):
        program = simt.build("attention", variant, replaced=replaced, defines=("SIMT_HEAD_DIM=64",))
        for case in cases():
            layers.add(_run(case, program, "forward"))
        layers.add(_run(cases()[0], program, "reversed"))
    return frozenset(layers - {"", "crash"})  # whether a fault crashes the host is a matter of luck


def _run(case: AttentionCase, program: Path, order: str) -> str:
    try:
        results = case.run(program=program, order=order)
    except simt.SimtError as error:
        return simt.fault(error)
    try:
        case.check(results)
    except AssertionError:
        return "results"
    return ""


def test_the_kernel_itself_passes() -> None:
    assert found_by({}) == frozenset()


@pytest.mark.parametrize("planted", MUTANTS, ids=lambda planted: planted.name)
def test_a_planted_fault_is_found(planted: Mutant) -> None:
    source = (simt.ROOT / planted.file).read_text()
    assert source.count(planted.old) == 1, f"{planted.file} no longer says {planted.old!r} once"
    assert found_by({planted.file: source.replace(planted.old, planted.new)}) == planted.found_by
