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
import torch

from support import simt
from support.simt_attention import AttentionCase, dominant_case, negative_case, random_case
from support.simt_attention_backward import AttentionBackwardCase, far_below_zero, random_backward

KERNEL = "csrc/attention/attention_forward_kernel.cuh"
BACKWARD = "csrc/attention/attention_backward_kernel.cuh"
TILED = "csrc/attention/attention_forward_tiled_kernel.cuh"
BACKWARD_TILED = "csrc/attention/attention_backward_tiled_kernel.cuh"
GRADIENT = "csrc/attention/attention_gradient.cuh"
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
    mutant("fragment swapped", PRODUCTS, "[tile], a[row], b[0], b[1])", "[tile], a[row], b[1], b[0])", "results"),
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
    mutant("keys behind the last", GRADIENT, "weight = key < tokens ?", "weight = true ?", "results"),
    mutant("no D", GRADIENT, "(slope - dot)", "slope", "results"),
    mutant("no barrier in a round", BACKWARD, "sync_threads();  // also parts", "// also parts", "results", "race"),
    mutant("one buffer", BACKWARD, "turn ^= 1", "turn = 0", "race"),
    mutant("no barrier at the end", BACKWARD, "sync_threads();  // every warp has", "// every warp has", "race"),
    mutant("rows read before their copy", BACKWARD, "  wait_for_copies<0>();", "", "results", "pending"),
    mutant("scale of grad_k", BACKWARD, "k_factors[2] = {float(a.scale),", "k_factors[2] = {1.0f,", "results"),
    mutant("halves of dS", BACKWARD, "2 * row_tile + lane / 8 % 2", "2 * row_tile + lane / 8 % 2 ^ 1", "results"),
)

TILED_MUTANTS = (
    mutant("tiles: no tail mask", TILED, "scale_logits<0>(a", "scale_logits<key_tiles>(a", "results"),
    mutant("tiles: no barrier", TILED, "sync_threads();  // the tile", "// the tile", "results", "race"),
    mutant("tiles: early read", TILED, "    wait_for_copies<0>();", "    wait_for_copies<1>();", "pending"),
    mutant("tiles: one buffer", TILED, "buffers + tile % 2 *", "buffers + 0 *", "results", "pending"),
    mutant("tiles: no sync_warp", TILED, "sync_warp();  // every lane", "// every lane", "race"),
    mutant("out keeps its maximum", TILED, "*= factors[j % 4 / 2]", "*= 1.0f", "results"),
    mutant("sum keeps its maximum", SOFTMAX, "rows.sums[half] * factors[half]", "rows.sums[half]", "results"),
    mutant("masked so far", SOFTMAX, "maximum == -infinity ? 0.0f : maximum", "maximum", "results"),
)

BACKWARD_TILED_MUTANTS = (
    mutant("D of the keys' kernel", BACKWARD_TILED, "dots(head)[row] = dot;", "dots(head)[row] = 0.0f;", "results"),
    mutant(
        "lse not copied",
        BACKWARD_TILED,
        "    copy_async(lse",
        "    if (tile < 1) copy_async(lse",
        "results",
        "uninitialized",
    ),
    mutant("queries: no barrier", BACKWARD_TILED, "sync_threads();  // the keys", "// the keys", "results", "race"),
    mutant("keys: no barrier", BACKWARD_TILED, "sync_threads();  // the queries", "// the queries", "results", "race"),
    mutant("both: one buffer", BACKWARD_TILED, "buffers + tile % 2 *", "buffers + 0 *", "results", "pending"),
    mutant("queries: no sync_warp", BACKWARD_TILED, "sync_warp();  // every lane has read the q", "// the q", "race"),
    mutant("keys: no sync_warp", BACKWARD_TILED, "sync_warp();  // every lane has read the k", "// the k", "race"),
    mutant("scale of grad_q", BACKWARD_TILED, "grad_q[0], float(a.scale)", "grad_q[0], 1.0f", "results"),
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


def tiled_cases() -> list[AttentionCase]:
    """Calls on which every mutant of the forward by tiles shows: in the last, a row's first tile of keys is masked."""
    bias = torch.zeros(1, 1, 161, 161)
    bias[..., 5:, :70] = -torch.inf
    return [random_case(2, 1, 197, 64), negative_case(197, 64), random_case(1, 1, 161, 64, bias=bias.half())]


def backward_cases() -> list[AttentionBackwardCase]:
    """Calls on which every mutant of the backward shows."""
    return [random_backward(1, 2, 197, 64), far_below_zero(197, 64), random_backward(2, 1, 50, 64)]


def found_by(program: str, cases: Sequence[Case], replaced: dict[str, str], *, tiled: bool = False) -> frozenset[str]:
    """Builds every variant of a mutant, runs the cases and says which layers have found something."""
    layers = set()
    defines = ("SIMT_HEAD_DIM=64", "SIMT_TILED") if tiled else ("SIMT_HEAD_DIM=64",)
    for variant in ("plain", "address", "race"):
        executable = simt.build(program, variant, replaced=replaced, defines=defines)
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


def test_the_kernels_by_tiles_themselves_pass() -> None:
    assert found_by("attention", tiled_cases(), {}, tiled=True) == frozenset()
    assert found_by("attention_backward", backward_cases(), {}, tiled=True) == frozenset()


@pytest.mark.slow
@pytest.mark.parametrize("planted", BACKWARD_MUTANTS, ids=lambda planted: planted.name)
def test_a_fault_planted_in_the_backward_is_found(planted: Mutant) -> None:
    assert found_by("attention_backward", backward_cases(), _plant(planted)) == planted.found_by


@pytest.mark.slow
@pytest.mark.parametrize("planted", TILED_MUTANTS, ids=lambda planted: planted.name)
def test_a_fault_planted_in_the_forward_by_tiles_is_found(planted: Mutant) -> None:
    assert found_by("attention", tiled_cases(), _plant(planted), tiled=True) == planted.found_by


@pytest.mark.slow
@pytest.mark.parametrize("planted", BACKWARD_TILED_MUTANTS, ids=lambda planted: planted.name)
def test_a_fault_planted_in_the_backward_by_tiles_is_found(planted: Mutant) -> None:
    assert found_by("attention_backward", backward_cases(), _plant(planted), tiled=True) == planted.found_by
