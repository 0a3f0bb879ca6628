"""Mutations of the attention kernels are detected, by the recorded layers: none of the layers is redundant.

The layers: ``results`` (against float64), ``address`` (AddressSanitizer), ``race``, ``pending`` and ``uninitialized``
(the check of shared memory), ``runtime`` (the emulation itself, and the guards behind outputs).
docs/internals/emulation.md shows the table.
"""

from __future__ import annotations

import torch

from support.simt_attention import (
    AttentionBackwardCase,
    AttentionCase,
    dominant_case,
    far_below_zero,
    negative_case,
    positive_case,
    random_backward,
    random_case,
)
from support.simt_mutation import mutation, mutation_test

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

MUTATIONS = (
    mutation("no tail mask", SOFTMAX, "const bool hidden = tile", "const bool hidden = false && tile", "results"),
    mutation("mask off by one", SOFTMAX, "i % 2 >= tokens;", "i % 2 > tokens;", "results"),
    mutation("keys: no barrier", KERNEL, "the values may be in flight\n      sync_threads();", "\n", "race"),
    mutation(
        "values: no barrier",
        KERNEL,
        "queries may be in flight\n      sync_threads();",
        "\n",
        "results",
        "race",
        "pending",
    ),
    mutation("queries: no sync_warp", KERNEL, "sync_warp();  // every lane has read", "// every lane has read", "race"),
    mutation(
        "result: no sync_warp",
        GEMM,
        "  sync_warp();\n  for (int i = lane;",
        "  for (int i = lane;",
        "results",
        "uninitialized",
    ),
    mutation(
        "keys: early read",
        KERNEL,
        "wait_for_copies<1>();  // queries",
        "wait_for_copies<2>();  // queries",
        "results",
        "pending",
    ),
    mutation(
        "values: early read",
        KERNEL,
        "wait_for_copies<1>();  // the values",
        "wait_for_copies<2>();  // ",
        "results",
        "pending",
    ),
    mutation("fragment swapped", GEMM, "first = Step::right(b[0], b[1])", "first = Step::right(b[1], b[0])", "results"),
    mutation(
        "stride of keys",
        GEMM,
        "rows + tile * 8 * head_dim",
        "rows + tile * 8 * (head_dim + 8)",
        "results",
        "address",
        "uninitialized",
    ),
    mutation("copies row N", GEMM, "row < count && chunk * Tile", "row <= count && chunk * Tile", "results", "address"),
    mutation(
        "writes row N",
        GEMM,
        "row < count && chunk * chunk_size",
        "row <= count && chunk * chunk_size",
        "address",
        "runtime",
    ),
    mutation(
        "one row short",
        KERNEL,
        "keys = shared.take<T>(heads_per_block * padded_keys * head_dim)",
        "keys = shared.take<T>((heads_per_block * padded_keys - 1) * head_dim)",
        "address",
    ),
    mutation(
        "tail not zeroed",
        GEMM,
        "    copy_async(tile",
        "    if (inside) copy_async(tile",
        "results",
        "uninitialized",
    ),
)


BACKWARD_MUTATIONS = (
    mutation("keys behind the last", GRADIENT, "weight = key < tokens ?", "weight = true ?", "results"),
    mutation("no D", GRADIENT, "(slope - dot)", "slope", "results"),
    mutation(
        "no barrier in a round",
        BACKWARD,
        "sync_threads();  // also parts",
        "// also parts",
        "results",
        "race",
        "uninitialized",
    ),
    mutation("one buffer", BACKWARD, "turn ^= 1", "turn = 0", "race"),
    mutation(
        "no barrier at the end", BACKWARD, "sync_threads();  // every warp has", "// every warp has", "results", "race"
    ),
    mutation("rows read before their copy", BACKWARD, "  wait_for_copies<0>();", "", "pending"),
    mutation("a tile of grad_q left out", BACKWARD, "unit = place", "unit = 1 + place", "results"),
    mutation("scale of grad_k", BACKWARD, "grad_k[0], {scale,", "grad_k[0], {1.0f,", "results"),
    mutation("halves of dS", BACKWARD, "2 * row_tile + lane / 8 % 2", "2 * row_tile + lane / 8 % 2 ^ 1", "results"),
)

TILED_MUTATIONS = (
    mutation("tiles: no tail mask", TILED, "scale_logits<0>(a", "scale_logits<key_tiles>(a", "results"),
    mutation("tiles: no barrier", TILED, "sync_threads();  // the tile", "// the tile", "results", "race"),
    mutation("tiles: early read", TILED, "    wait_for_copies<0>();", "    wait_for_copies<1>();", "pending"),
    mutation("tiles: one buffer", TILED, "buffers + tile % 2 *", "buffers + 0 *", "results", "pending"),
    mutation("tiles: no sync_warp", TILED, "sync_warp();  // every lane", "// every lane", "race"),
    mutation("out keeps its maximum", TILED, "*= factors[j % 4 / 2]", "*= 1.0f", "results"),
    mutation("sum keeps its maximum", SOFTMAX, "rows.sums[half] * factors[half]", "rows.sums[half]", "results"),
    mutation("masked so far", SOFTMAX, "maximum == -infinity ? 0.0f : maximum", "maximum", "results"),
)

BACKWARD_TILED_MUTATIONS = (
    mutation("D of the keys' kernel", BACKWARD_TILED, "+ row] = found.dot;", "+ row] = 0.0f;", "results"),
    mutation(
        "lse not copied",
        BACKWARD_TILED,
        "    copy_async(lse",
        "    if (tile < 1) copy_async(lse",
        "results",
        "uninitialized",
    ),
    mutation("both: no barrier", BACKWARD_TILED, "sync_threads();  // the tile", "// the tile", "results", "race"),
    mutation("both: one buffer", BACKWARD_TILED, "buffers + tile % 2 *", "buffers + 0 *", "results", "pending"),
    mutation("both: no sync_warp", BACKWARD_TILED, "sync_warp();  // every lane", "// every lane", "race"),
    mutation("both: no scale", BACKWARD_TILED, "grad[0], {scale,", "grad[0], {1.0f,", "results"),
)

FLOAT_MUTATIONS = (
    mutation(
        "floats: one product in tf32",
        STEP,
        "    mma_m16n8k8_tf32(step, a.low, b.high);\n    mma_m16n8k8_tf32(step, a.high, b.low);\n",
        "",
        "results",
    ),
    mutation("floats: no low high", STEP, "    mma_m16n8k8_tf32(step, a.low, b.high);\n", "", "results"),
    mutation("floats: no high low", STEP, "    mma_m16n8k8_tf32(step, a.high, b.low);\n", "", "results"),
    mutation(
        "floats: sums cut off",
        STEP,
        "    float step[4] = {};\n",
        "    float step[4] = {d[0], d[1], d[2], d[3]};\n    for (float& sum : d) sum = 0.0f;\n",
        "results",
    ),
    mutation("floats: columns in A's order", GEMM, "chunk(lane % 4 * 2 + 1,", "chunk(lane % 4 * 2,", "results"),
    mutation("floats: tiles stay", GEMM, "a_tiles[row][i / 4 + 1][i % 4];", "a_tiles[row][i / 4][i % 4];", "results"),
    mutation(
        "floats: stride of values",
        GEMM,
        "place = tile * 8 * head_dim",
        "place = tile * 8 * (head_dim + 8)",
        "results",
        "address",
        "pending",
    ),
    mutation("floats: no barrier", TILED, "sync_threads();  // the tile", "// the tile", "results", "race"),
    mutation("floats: early read", TILED, "    wait_for_copies<0>();", "    wait_for_copies<1>();", "pending"),
    mutation("floats: no sync_warp", TILED, "sync_warp();  // every lane", "// every lane", "race"),
)


def float_cases() -> list[AttentionCase]:
    """Calls on which every mutation of the products of floats shows."""
    return [random_case(1, 2, 197, 64, torch.float32), positive_case(300, 64)]


def cases() -> list[AttentionCase]:
    """Calls on which every mutation of the forward shows."""
    return [
        random_case(2, 1, 197, 64),
        negative_case(197, 64),
        dominant_case(101, 64),
        random_case(2, 3, 17, 64),
    ]


def tiled_cases() -> list[AttentionCase]:
    """Calls on which every mutation of the tiled forward shows: in the last, a row's first tile of keys is masked."""
    bias = torch.zeros(1, 1, 161, 161)
    bias[..., 5:, :70] = -torch.inf
    return [random_case(2, 1, 197, 64), negative_case(197, 64), random_case(1, 1, 161, 64, bias=bias.half())]


def backward_cases() -> list[AttentionBackwardCase]:
    """Calls on which every mutation of the backward shows."""
    return [random_backward(1, 2, 197, 64), far_below_zero(197, 64), random_backward(2, 1, 50, 64)]


test_mutations_are_detected = mutation_test("attention", cases, MUTATIONS, ONE_INSTANCE)
test_mutations_of_the_backward_are_detected = mutation_test(
    "attention_backward", backward_cases, BACKWARD_MUTATIONS, ONE_INSTANCE
)
test_mutations_of_the_forward_by_tiles_are_detected = mutation_test("attention", tiled_cases, TILED_MUTATIONS, BY_TILES)
test_mutations_of_the_backward_by_tiles_are_detected = mutation_test(
    "attention_backward", backward_cases, BACKWARD_TILED_MUTATIONS, BY_TILES
)
test_mutations_of_the_products_of_floats_are_detected = mutation_test(
    "attention", float_cases, FLOAT_MUTATIONS, OF_FLOATS
)
