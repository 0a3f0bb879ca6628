"""Faults planted in the kernels of matmul_accumulate are found, and by what is recorded (docs/kernels.md)."""

from __future__ import annotations

from support.simt_accumulate import random_accumulate
from support.simt_half_sums import random_half_sums
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


HALF_SUMS = "csrc/matmul_accumulate/matmul_half_sums_kernel.cuh"

HALF_SUMS_MUTANTS = (
    mutant(
        "no barrier", HALF_SUMS, "sync_threads();  // the round", "// the round", "results", "race", "uninitialized"
    ),
    mutant("early read", HALF_SUMS, "    wait_for_copies<0>();\n", "", "pending"),
    mutant("one buffer", HALF_SUMS, "buffer ^= 1)", "buffer ^= 0)", "results"),
    mutant("halves of x swapped", HALF_SUMS, "2 * step + lane / 16)", "2 * step + 1 - lane / 16)", "results"),
    mutant("halves of weight swapped", HALF_SUMS, "[i][j], a[i], b[0], b[1])", "[i][j], a[i], b[1], b[0])", "results"),
    mutant("the rest of a chunk", HALF_SUMS, "if (left_in_chunk < a.chunk)", "if (false)", "results"),
    mutant("a sum that goes on", HALF_SUMS, "          pair = 0;\n", "", "results"),
    mutant("accumulators not rounded", HALF_SUMS, "if constexpr (rounds)", "if constexpr (false)", "results"),
    mutant("reads row N", HALF_SUMS, "a.rows - first_row)", "a.rows - first_row + 1)", "address"),
    mutant("writes row N", HALF_SUMS, "row >= a.rows", "row > a.rows", "address", "runtime"),
    mutant("writes column N", HALF_SUMS, "column + 1 < a.columns", "column < a.columns", "address", "runtime"),
)


def cases() -> list:
    """Calls on which every mutant shows."""
    return [random_accumulate(70, 67, 75, 8), random_accumulate(64, 64, 64, 20)]


def half_sums_cases() -> list:
    """The same of the kernel on tensor cores."""
    return [random_half_sums(70, 35, 200, 176), random_half_sums(3, 2, 24, 16, rounds=True)]


test_a_planted_fault_is_found = faults_test("matmul_accumulate", cases, MUTANTS)
test_a_fault_planted_in_the_sums_of_tensor_cores_is_found = faults_test(
    "matmul_accumulate", half_sums_cases, HALF_SUMS_MUTANTS
)
