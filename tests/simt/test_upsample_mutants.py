"""Faults planted in the kernels of upsample_relations are found, and by what is recorded (docs/kernels.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from support.simt_mutants import faults_test, mutant
from support.simt_upsample import UpsampleCase, random_upsample

KERNEL = "csrc/upsample_relations/upsample_relations_kernel.cuh"
ONE_INSTANCE = ("SIMT_TYPE=float", "SIMT_LANE_COLUMNS=1")

MUTANTS = (
    mutant("no barrier before a panel", KERNEL, "sync_threads();  // x is", "// x is", "results", "uninitialized"),
    mutant("no barrier behind it", KERNEL, "sync_threads();  // the panel", "// the panel", "results", "uninitialized"),
    mutant(
        "x not transposed",
        KERNEL,
        "to_line = by_rows ? 1 : stride, to_place = by_rows ?",
        "to_line = by_rows ? stride : 1, to_place = !by_rows ?",
        "results",
    ),
    mutant("the last lane's entries", KERNEL, "count += votes.all", "count += votes.below", "results"),
    mutant("a row behind the last", KERNEL, "row < a.fine && column", "row <= a.fine && column", "address"),
    mutant("a zero takes part", KERNEL, "if (weights.element[i] == 0.0f) continue;", "", "results"),
    mutant("writes row N", KERNEL, "if (row >= fine) break;", "if (row > fine) break;", "address", "runtime"),
    mutant("writes column N", KERNEL, "if (column < panel) out", "if (column <= panel) out", "address", "runtime"),
    mutant("a block's second panel", KERNEL, "first += parts * Panel", "first += 2 * parts * Panel", "results"),
)


class _BesideInfinity(UpsampleCase):
    """A row of the matrix is zero: so are a row and a column of the result, infinities or not."""

    def check(self, results: dict[str, Tensor]) -> None:
        unused = (self.matrix == 0).all(1)
        for out in (results["out"][:, :, unused], results["out"].mT[:, :, unused]):
            assert not out.any()


def cases() -> list[UpsampleCase]:
    """Calls on which every mutant shows; of the last one a block takes both panels of a head."""
    matrix = torch.randn(7, 40)
    matrix[3] = 0.0
    x = torch.randn(1, 1, 40, 40)
    x[0, 0, 2, 5] = torch.inf
    return [random_upsample((1, 2), (5, 6)), _BesideInfinity(x, matrix), random_upsample((280, 1), (2, 6))]


test_a_planted_fault_is_found = faults_test("upsample_relations", cases, MUTANTS, ONE_INSTANCE)
