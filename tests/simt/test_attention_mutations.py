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
    random_backward,
    random_case,
)
from support.simt_mutation import mutation, mutation_test

KERNEL = "csrc/attention/attention_forward_kernel.cuh"
BACKWARD = "csrc/attention/attention_backward_kernel.cuh"
GRADIENT = "csrc/attention/attention_gradient.cuh"
GEMM = "csrc/attention/attention_gemm.cuh"
SOFTMAX = "csrc/attention/attention_softmax.cuh"

ONE_TYPE = ("SIMT_TYPE=vitfast::Half",)

MUTATIONS = (
    mutation("no tail mask", SOFTMAX, "const bool hidden = tile", "const bool hidden = false && tile", "results"),
    mutation("fully masked row", SOFTMAX, "maximum == -infinity ? 0.0f : maximum", "maximum", "results"),
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
    mutation(
        "fragment swapped",
        GEMM,
        "mma_m16n8k16<T>(d[tile], a, b[0], b[1])",
        "mma_m16n8k16<T>(d[tile], a, b[1], b[0])",
        "results",
    ),
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
    mutation("scale of grad_k", BACKWARD, "grad_k, {scale,", "grad_k, {1.0f,", "results"),
    mutation("halves of dS", BACKWARD, "2 * row_tile + lane / 8 % 2", "2 * row_tile + lane / 8 % 2 ^ 1", "results"),
)


def cases() -> list[AttentionCase]:
    """Calls on which every mutation of the forward shows: in the last, a row attends to nothing."""
    bias = torch.zeros(1, 1, 17, 17)
    bias[..., 3, :] = -torch.inf
    return [
        random_case(2, 1, 197, 64),
        negative_case(197, 64),
        dominant_case(101, 64),
        random_case(2, 3, 17, 64),
        random_case(1, 1, 17, 64, bias=bias.half()),
    ]


def backward_cases() -> list[AttentionBackwardCase]:
    """Calls on which every mutation of the backward shows."""
    return [random_backward(1, 2, 197, 64), far_below_zero(197, 64), random_backward(2, 1, 50, 64)]


test_mutations_are_detected = mutation_test("attention", cases, MUTATIONS, ONE_TYPE)
test_mutations_of_the_backward_are_detected = mutation_test(
    "attention_backward", backward_cases, BACKWARD_MUTATIONS, ONE_TYPE
)
