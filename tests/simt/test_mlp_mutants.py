"""Faults planted in the kernel of the MLP are found, and by what is recorded (docs/kernels.md)."""

from __future__ import annotations

from support.simt_mlp import random_mlp
from support.simt_mutants import faults_test, mutant

KERNEL = "csrc/mlp/mlp_kernel.cuh"
ONE_INSTANCE = ("SIMT_TYPE=vitfast::Half", "SIMT_WIDTH=64")

MUTANTS = (
    mutant("no barrier", KERNEL, "sync_threads();  // the weights are loaded", "// the weights are there", "race"),
    mutant("weights: early read", KERNEL, "    wait_for_copies<0>();\n", "", "results", "pending"),
    mutant("one buffer", KERNEL, "buffer ^= 1)", "buffer ^= 0)", "results"),
    mutant("x: no sync_warp", KERNEL, "sync_warp();  // all lanes have read", "// all lanes have read", "race"),
    mutant("residual: no wait", KERNEL, "  wait_for_copies<0>();\n  sync_warp();", "  sync_warp();", "pending"),
    mutant("residual: no sync_warp", KERNEL, "sync_warp();  // the residual", "// the residual", "results", "pending"),
    mutant("result: no sync_warp", KERNEL, "sync_warp();  // the result", "// the result", "results", "race"),
    mutant("fragment swapped", KERNEL, "(d[tile], a, b[0], b[1])", "(d[tile], a, b[1], b[0])", "results"),
    mutant("writes row N", KERNEL, "warp_row + row >= a.rows", "warp_row + row > a.rows", "address", "runtime"),
    mutant("reads bias F", KERNEL, "column < count ?", "column <= count ?", "results", "address"),
)


def cases() -> list:
    """Calls on which every mutant shows."""
    return [random_mlp(70, 64, 200), random_mlp(17, 40, 136)]


test_a_planted_fault_is_found = faults_test("mlp", cases, MUTANTS, ONE_INSTANCE)
