"""The kernel that adds the rows of a gradient's partial sums, run on the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support import simt
from support.simt_mutation import mutation, mutation_test

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class PartialSumsCase:
    """One call: ``partial`` ``[chunks, columns]``, float32, and the dtype of the sums."""

    partial: Tensor
    dtype: torch.dtype = torch.float32

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "partial_sums"
    ) -> dict[str, Tensor]:
        """Returns ``sums`` [columns]."""
        chunks, columns = self.partial.shape
        outputs = {"sums": ((columns,), self.dtype)}
        sizes = {"chunks": chunks, "columns": columns}
        inputs = {"partial": self.partial}
        return simt.run(program, inputs, outputs, sizes, element=self.dtype, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the sums against float64."""
        exact = self.partial.double().sum(0)
        torch.testing.assert_close(results["sums"].double(), exact, rtol=torch.finfo(self.dtype).eps, atol=2e-5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_size(simt_variant: str, dtype: torch.dtype) -> None:
    for chunks in (0, 1, 31, 32, 33, 300):
        for columns in (1, 32, 33, 100):
            case = PartialSumsCase(torch.randn(chunks, columns), dtype)
            case.check(case.run(variant=simt_variant))


@pytest.mark.parametrize("order", ["reversed", "1"])
def test_the_order_of_threads_changes_no_bit(order: str) -> None:
    case = PartialSumsCase(torch.randn(300, 70))
    assert torch.equal(case.run()["sums"], case.run(order=order)["sums"])


def test_a_nan_stays_in_its_column() -> None:
    partial = torch.randn(40, 40)
    partial[35, 7] = torch.nan
    assert PartialSumsCase(partial).run()["sums"].isnan().nonzero().tolist() == [[7]]


# --- mutations ---

KERNEL = "csrc/cuda/partial_sums.cuh"

MUTATIONS = (
    mutation("no barrier", KERNEL, "  sync_threads();\n", "", "results", "race", "uninitialized"),
    mutation("columns past the last one read", KERNEL, "if (column < columns) {", "if (true) {", "address"),
    mutation("a warp left out", KERNEL, "int other = 0;", "int other = 1;", "results"),
    mutation("a chunk left out", KERNEL, "chunk < chunks;", "chunk + 1 < chunks;", "results"),
)


def cases() -> list:
    """Calls on which every mutation of the kernel shows."""
    return [PartialSumsCase(torch.randn(70, 33)), PartialSumsCase(torch.randn(3, 5))]


test_mutations_are_detected = mutation_test("partial_sums", cases, MUTATIONS, ("SIMT_TYPE=float",))
