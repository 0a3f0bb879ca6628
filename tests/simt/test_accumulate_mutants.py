"""Faults planted in the kernels of matmul_accumulate are found, and by what is recorded (docs/kernels.md)."""

from __future__ import annotations

from support.simt_accumulate import random_accumulate
from support.simt_fp16_accumulation import random_fp16_accumulation
from support.simt_mutants import faults_test, mutant

KERNEL = "csrc/matmul_accumulate/matmul_accumulate_kernel.cuh"

MUTANTS = (
    mutant("no barrier before a round", KERNEL, "sync_threads();  // every", "// every", "results", "race"),
    mutant("no barrier behind it", KERNEL, "    sync_threads();\n", "", "results", "uninitialized"),
    mutant("the rest of a chunk", KERNEL, "if (left_in_chunk < a.chunk)", "if (false)", "results"),
    mutant("a chunk without end", KERNEL, "      left_in_chunk -= end - k;\n", "", "results"),
    mutant("reads row N", KERNEL, "row < rows ? row : rows - 1", "row", "address"),
    mutant("writes column N", KERNEL, "column + j < a.columns", "column + j <= a.columns", "address", "runtime"),
)


FP16_KERNEL = "csrc/matmul_accumulate/matmul_fp16_accumulation_kernel.cuh"

FP16_MUTANTS = (
    mutant(
        "no barrier",
        FP16_KERNEL,
        "sync_threads();  // the round",
        "// the round",
        "results",
        "race",
        "uninitialized",
    ),
    mutant("early read", FP16_KERNEL, "    wait_for_copies<0>();\n", "", "pending"),
    mutant("one buffer", FP16_KERNEL, "buffer ^= 1)", "buffer ^= 0)", "results"),
    mutant("halves of x swapped", FP16_KERNEL, "2 * step + lane / 16)", "2 * step + 1 - lane / 16)", "results"),
    mutant(
        "halves of weight swapped",
        FP16_KERNEL,
        "[i][j], a[i], b[0], b[1])",
        "[i][j], a[i], b[1], b[0])",
        "results",
    ),
    mutant("the rest of a chunk", FP16_KERNEL, "if (left_in_chunk < a.chunk)", "if (false)", "results"),
    mutant("a sum that goes on", FP16_KERNEL, "          pair = 0;\n", "", "results"),
    mutant("accumulators not rounded", FP16_KERNEL, "if constexpr (rounds)", "if constexpr (false)", "results"),
    mutant("reads row N", FP16_KERNEL, "a.rows - first_row)", "a.rows - first_row + 1)", "address"),
    mutant("writes row N", FP16_KERNEL, "row >= a.rows", "row > a.rows", "address", "runtime"),
    mutant("writes column N", FP16_KERNEL, "column + 1 < a.columns", "column < a.columns", "address", "runtime"),
)


def cases() -> list:
    """Calls on which every mutant shows."""
    return [random_accumulate(70, 67, 75, 8), random_accumulate(64, 64, 64, 20)]


def fp16_accumulation_cases() -> list:
    """The same of the kernel on tensor cores."""
    return [random_fp16_accumulation(70, 35, 200, 176), random_fp16_accumulation(3, 2, 24, 16, rounds=True)]


test_a_planted_fault_is_found = faults_test("matmul_accumulate", cases, MUTANTS)
test_a_fault_planted_in_the_sums_of_tensor_cores_is_found = faults_test(
    "matmul_accumulate", fp16_accumulation_cases, FP16_MUTANTS
)
