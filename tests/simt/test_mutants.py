"""Faults planted in the attention kernels are found, and by what is recorded: none of the layers is redundant.

The layers: ``results`` (against float64), ``address`` (AddressSanitizer), ``race``, ``pending`` and ``uninitialized``
(the check of shared memory), ``runtime`` (the emulation itself, and the guards behind outputs). docs/kernels.md shows
the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import simt
from support.simt_attention import AttentionCase, dominant_case, negative_case, random_case
from support.simt_attention_backward import AttentionBackwardCase, far_below_zero, random_backward

KERNEL = "csrc/attention/attention_forward_kernel.cuh"
BACKWARD = "csrc/attention/attention_backward_kernel.cuh"
PRODUCTS = "csrc/attention/attention_products.cuh"
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
        PRODUCTS,
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
    mutant("fragment swapped", PRODUCTS, "(d[tile], a, b[0], b[1])", "(d[tile], a, b[1], b[0])", "results"),
    mutant(
        "stride of keys",
        PRODUCTS,
        "rows + tile * 8 * head_dim",
        "rows + tile * 8 * (head_dim + 8)",
        "results",
        "address",
        "uninitialized",
    ),
    mutant(
        "copies row N", PRODUCTS, "row < count && chunk * Tile", "row <= count && chunk * Tile", "results", "address"
    ),
    mutant("writes row N", PRODUCTS, "row < count && chunk * 8", "row <= count && chunk * 8", "address", "runtime"),
    mutant(
        "one row short",
        KERNEL,
        "keys = shared.take<T>(heads_per_block * padded_keys * head_dim)",
        "keys = shared.take<T>((heads_per_block * padded_keys - 1) * head_dim)",
        "address",
    ),
    mutant(
        "tail not zeroed",
        PRODUCTS,
        "    copy_async(tile",
        "    if (inside) copy_async(tile",
        "results",
        "uninitialized",
    ),
)


BACKWARD_MUTANTS = (
    mutant("lse of rows behind the last", BACKWARD, "* log2_of_e : infinity;", "* log2_of_e : 0.0f;", "results"),
    mutant("keys behind the last", BACKWARD, "weight[i] = key < tokens ?", "weight[i] = true ?", "results"),
    mutant("no D", BACKWARD, "(slopes[tile][i] - dots[query])", "slopes[tile][i]", "results"),
    mutant("no barrier in a round", BACKWARD, "sync_threads();  // also parts", "// also parts", "results", "race"),
    mutant("one buffer", BACKWARD, "turn ^= 1", "turn = 0", "race"),
    mutant("no barrier at the end", BACKWARD, "sync_threads();  // every warp has", "// every warp has", "race"),
    mutant("rows read before their copy", BACKWARD, "  wait_for_copies<0>();", "", "results", "pending"),
    mutant("scale of grad_k", BACKWARD, "k_factors[2] = {float(a.scale),", "k_factors[2] = {1.0f,", "results"),
    mutant("halves of dS", BACKWARD, "2 * row_tile + lane / 8 % 2", "2 * row_tile + lane / 8 % 2 ^ 1", "results"),
)

Case = AttentionCase | AttentionBackwardCase


def cases() -> list[AttentionCase]:
    """Calls on which every mutant of the forward shows."""
    return [
        random_case(2, 1, 197, 64),
        negative_case(197, 64),
        dominant_case(101, 64),
        random_case(2, 3, 17, 64),
    ]


def backward_cases() -> list[AttentionBackwardCase]:
    """Calls on which every mutant of the backward shows."""
    return [random_backward(1, 2, 197, 64), far_below_zero(197, 64), random_backward(2, 1, 50, 64)]


def found_by(program: str, cases: Sequence[Case], replaced: dict[str, str]) -> frozenset[str]:
    """Builds every variant of a mutant, runs the cases and says which layers have found something."""
    layers = set()
    for variant in ("plain", "address", "race"):
        executable = simt.build(program, variant, replaced=replaced, defines=("SIMT_HEAD_DIM=64",))
        for case in cases:
            layers.add(_run(case, executable, "forward"))
        layers.add(_run(cases[0], executable, "reversed"))
    return frozenset(layers - {"", "crash"})  # whether a fault crashes the host is a matter of luck


def _run(case: Case, program: Path, order: str) -> str:
    try:
        results = case.run(program=program, order=order)
    except simt.SimtError as error:
        return simt.fault(error)
    try:
        case.check(results)
    except AssertionError:
        return "results"
    return ""


def _plant(planted: Mutant) -> dict[str, str]:
    source = (simt.ROOT / planted.file).read_text()
    assert source.count(planted.old) == 1, f"{planted.file} no longer says {planted.old!r} once"
    return {planted.file: source.replace(planted.old, planted.new)}


def test_the_kernel_itself_passes() -> None:
    assert found_by("attention", cases(), {}) == frozenset()


@pytest.mark.parametrize("planted", MUTANTS, ids=lambda planted: planted.name)
def test_a_planted_fault_is_found(planted: Mutant) -> None:
    assert found_by("attention", cases(), _plant(planted)) == planted.found_by


def test_the_backward_itself_passes() -> None:
    assert found_by("attention_backward", backward_cases(), {}) == frozenset()


@pytest.mark.slow
@pytest.mark.parametrize("planted", BACKWARD_MUTANTS, ids=lambda planted: planted.name)
def test_a_fault_planted_in_the_backward_is_found(planted: Mutant) -> None:
    assert found_by("attention_backward", backward_cases(), _plant(planted)) == planted.found_by
