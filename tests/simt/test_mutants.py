"""Faults planted in the attention kernels are found, and by what is recorded: none of the layers is redundant.

The layers: ``results`` (against float64), ``address`` (AddressSanitizer), ``race``, ``pending`` and ``uninitialized``
(the check of shared memory), ``runtime`` (the emulation itself, and the guards behind outputs). docs/kernels.md shows
the table.
"""

from __future__ import annotations

import torch

from support.simt_attention import AttentionCase, dominant_case, negative_case, positive_case, random_case
from support.simt_attention_backward import AttentionBackwardCase, far_below_zero, random_backward
from support.simt_mutants import faults_test, mutant

KERNEL = "csrc/attention/attention_forward_kernel.cuh"
BACKWARD = "csrc/attention/attention_backward_kernel.cuh"
TILED = "csrc/attention/attention_forward_tiled_kernel.cuh"
BACKWARD_TILED = "csrc/attention/attention_backward_tiled_kernel.cuh"
GRADIENT = "csrc/attention/attention_gradient.cuh"
GEMM = "csrc/attention/attention_gemm.cuh"
SOFTMAX = "csrc/attention/attention_softmax.cuh"
STEP = "csrc/cuda/matrix_step.cuh"

ONE_INSTANCE = ("SIMT_TYPE=vitfast::Half", "SIMT_HEAD_DIM=64")
BY_TILES = (*ONE_INSTANCE, "SIMT_TILED")
OF_FLOATS = ("SIMT_TYPE=float", "SIMT_HEAD_DIM=64")

MUTANTS = (
    mutant("no tail mask", SOFTMAX, "const bool hidden = tile", "const bool hidden = false && tile", "results"),
    mutant("mask off by one", SOFTMAX, "i % 2 >= tokens;", "i % 2 > tokens;", "results"),
    mutant("keys: no barrier", KERNEL, "the values may be in flight\n      sync_threads();", "\n", "race"),
    mutant(
        "values: no barrier",
        KERNEL,
        "queries may be in flight\n      sync_threads();",
        "\n",
        "results",
        "race",
        "pending",
    ),
    mutant("queries: no sync_warp", KERNEL, "sync_warp();  // every lane has read", "// every lane has read", "race"),
    mutant(
        "result: no sync_warp",
        GEMM,
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
    mutant("fragment swapped", GEMM, "first = Step::right(b[0], b[1])", "first = Step::right(b[1], b[0])", "results"),
    mutant(
        "stride of keys",
        GEMM,
        "rows + tile * 8 * head_dim",
        "rows + tile * 8 * (head_dim + 8)",
        "results",
        "address",
        "uninitialized",
    ),
    mutant("copies row N", GEMM, "row < count && chunk * Tile", "row <= count && chunk * Tile", "results", "address"),
    mutant(
        "writes row N",
        GEMM,
        "row < count && chunk * chunk_size",
        "row <= count && chunk * chunk_size",
        "address",
        "runtime",
    ),
    mutant(
        "one row short",
        KERNEL,
        "keys = shared.take<T>(heads_per_block * padded_keys * head_dim)",
        "keys = shared.take<T>((heads_per_block * padded_keys - 1) * head_dim)",
        "address",
    ),
    mutant(
        "tail not zeroed",
        GEMM,
        "    copy_async(tile",
        "    if (inside) copy_async(tile",
        "results",
        "uninitialized",
    ),
)


BACKWARD_MUTANTS = (
    mutant("keys behind the last", GRADIENT, "weight = key < tokens ?", "weight = true ?", "results"),
    mutant("no D", GRADIENT, "(slope - dot)", "slope", "results"),
    mutant(
        "no barrier in a round",
        BACKWARD,
        "sync_threads();  // also parts",
        "// also parts",
        "results",
        "race",
        "uninitialized",
    ),
    mutant("one buffer", BACKWARD, "turn ^= 1", "turn = 0", "race"),
    mutant(
        "no barrier at the end", BACKWARD, "sync_threads();  // every warp has", "// every warp has", "results", "race"
    ),
    mutant("rows read before their copy", BACKWARD, "  wait_for_copies<0>();", "", "pending"),
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

FLOAT_MUTANTS = (
    mutant(
        "floats: one product in tf32",
        STEP,
        "    mma_m16n8k8_tf32(step, a.low, b.high);\n    mma_m16n8k8_tf32(step, a.high, b.low);\n",
        "",
        "results",
    ),
    mutant("floats: no low high", STEP, "    mma_m16n8k8_tf32(step, a.low, b.high);\n", "", "results"),
    mutant("floats: no high low", STEP, "    mma_m16n8k8_tf32(step, a.high, b.low);\n", "", "results"),
    mutant(
        "floats: sums cut off",
        STEP,
        "    float step[4] = {};\n",
        "    float step[4] = {d[0], d[1], d[2], d[3]};\n    for (float& sum : d) sum = 0.0f;\n",
        "results",
    ),
    mutant("floats: columns in A's order", GEMM, "chunk(lane % 4 * 2 + 1,", "chunk(lane % 4 * 2,", "results"),
    mutant("floats: tiles stay", GEMM, "a_tiles[row][i / 4 + 1][i % 4];", "a_tiles[row][i / 4][i % 4];", "results"),
    mutant(
        "floats: stride of values",
        GEMM,
        "place = tile * 8 * head_dim",
        "place = tile * 8 * (head_dim + 8)",
        "results",
        "address",
        "pending",
    ),
    mutant("floats: no barrier", TILED, "sync_threads();  // the tile", "// the tile", "results", "race"),
    mutant("floats: early read", TILED, "    wait_for_copies<0>();", "    wait_for_copies<1>();", "pending"),
    mutant("floats: no sync_warp", TILED, "sync_warp();  // every lane", "// every lane", "race"),
)


def float_cases() -> list[AttentionCase]:
    """Calls on which every mutant of the products of floats shows."""
    return [random_case(1, 2, 197, 64, torch.float32), positive_case(300, 64)]


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


test_a_planted_fault_is_found = faults_test("attention", cases, MUTANTS, ONE_INSTANCE)
test_a_fault_planted_in_the_backward_is_found = faults_test(
    "attention_backward", backward_cases, BACKWARD_MUTANTS, ONE_INSTANCE
)
test_a_fault_planted_in_the_forward_by_tiles_is_found = faults_test("attention", tiled_cases, TILED_MUTANTS, BY_TILES)
test_a_fault_planted_in_the_backward_by_tiles_is_found = faults_test(
    "attention_backward", backward_cases, BACKWARD_TILED_MUTANTS, BY_TILES
)
test_a_fault_planted_in_the_products_of_floats_is_found = faults_test(
    "attention", float_cases, FLOAT_MUTANTS, OF_FLOATS
)
