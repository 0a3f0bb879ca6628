"""Faults planted in the kernel of matmul_accumulate are found, and by what is recorded (docs/kernels.md)."""

from __future__ import annotations

from support.simt_accumulate import random_accumulate
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


def cases() -> list:
    """Calls on which every mutant shows."""
    return [random_accumulate(70, 67, 75, 8), random_accumulate(64, 64, 64, 20)]


test_a_planted_fault_is_found = faults_test("matmul_accumulate", cases, MUTANTS)
