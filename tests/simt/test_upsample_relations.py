"""The CUDA kernel of upsample_relations, run on the host, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from support.simt_mutation import mutation, mutation_test
from support.simt_upsample import UpsampleCase, random_upsample
from vitfast.layers import GridUpsample

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("grids", [(7, 10), (10, 14)], ids=str)
def test_the_grids_of_dvt(result_variant: str, grids: tuple[int, int], dtype: torch.dtype) -> None:
    for narrow in (False, True):
        case = random_upsample((1, 2), grids, dtype, narrow=narrow)
        case.check(case.run(variant=result_variant))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accesses_at_a_grid_of_dvt(checked_variant: str, dtype: torch.dtype) -> None:
    for narrow in (False, True):
        case = random_upsample((1, 2), (7, 10), dtype, narrow=narrow)
        case.check(case.run(variant=checked_variant))


@pytest.mark.parametrize("grids", [(1, 1), (1, 2), (2, 3), (3, 2), (5, 6)], ids=str)
def test_small_grids(simt_variant: str, grids: tuple[int, int]) -> None:
    # 300 heads: more than a large GPU needs blocks, so that a block processes a whole head
    for leading in ((3, 1), (150, 2)) if grids == (5, 6) else ((3, 1),):
        case = random_upsample(leading, grids, narrow=True)
        case.check(case.run(variant=simt_variant))


def test_any_matrix(simt_variant: str) -> None:
    row_of_zeros = torch.tensor([[0.0, 0.0], [0.5, -2.0]])
    # dense, with panels of 128 and a rest; one row, and no nonzero element; more rows than the lanes of four rounds
    matrices = [row_of_zeros, torch.randn(150, 40), torch.randn(1, 1), torch.zeros(5, 3), torch.eye(6, 131)]
    for matrix in matrices:
        case = random_upsample((1, 2), matrix)
        case.check(case.run(variant=simt_variant))


def test_a_matrix_without_columns_gives_zeros(simt_variant: str) -> None:
    case = random_upsample((2, 1), torch.zeros(5, 0))
    assert torch.equal(case.run(variant=simt_variant)["out"], torch.zeros(2, 1, 5, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(simt_variant: str, dtype: torch.dtype) -> None:
    matrix = GridUpsample(2, 3).matrix
    channels_last = torch.randn(2, 5, 5, 12).to(dtype).permute(0, 3, 1, 2)  # as the layers' perceptron leaves them
    layers = torch.randn(2, 6, 5, 5).to(dtype)
    for x in (channels_last[:, 4:8], layers[:, 2:4], layers.mT, layers[:1].expand(3, -1, -1, -1)):
        case = UpsampleCase(x, matrix)
        case.check(case.run(variant=simt_variant))


def test_the_gradient_reads_the_matrix_transposed(simt_variant: str) -> None:
    case = UpsampleCase(torch.randn(1, 2, 26, 26), GridUpsample(3, 5).matrix.t())
    case.check(case.run(variant=simt_variant))


def test_neighbouring_rows_are_listed_together() -> None:
    # class token | 0 0 1 1, 0 0 1 1, 2 2 3 3, 2 2 3 3: what the rows of a 4 x 4 grid read of a 2 x 2 one, by fours
    counts = random_upsample((1, 1), (2, 4)).run()["counts"]
    assert counts.tolist() == [3, 2, 3, 2, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_stay_where_they_are_used(value: float) -> None:
    case = random_upsample((1, 2), (3, 4))
    spoilt = dataclasses.replace(case, x=case.x.clone())
    spoilt.x[0, 1, 4, 7] = value
    out, expected = spoilt.run()["out"], case.run()["out"]
    uses = torch.zeros_like(out, dtype=torch.bool)
    uses[0, 1] = (case.matrix[:, 4] != 0)[:, None] & (case.matrix[:, 7] != 0)
    assert uses.any()
    assert not out[uses].isfinite().any()
    assert torch.equal(out[~uses], expected[~uses])


@pytest.mark.parametrize("order", ["reversed", "1", "2"])
def test_the_order_of_threads_changes_no_bit(order: str) -> None:
    case = random_upsample((2, 2), (4, 6))
    assert torch.equal(case.run(order=order)["out"], case.run()["out"])


# --- mutations ---

KERNEL = "csrc/upsample_relations/upsample_relations_kernel.cuh"
ONE_INSTANCE = ("SIMT_TYPE=float", "SIMT_LANE_COLUMNS=1")

MUTATIONS = (
    mutation("no barrier before a panel", KERNEL, "sync_threads();  // x is", "// x is", "results", "uninitialized"),
    mutation(
        "no barrier behind it", KERNEL, "sync_threads();  // the panel", "// the panel", "results", "uninitialized"
    ),
    mutation(
        "x not transposed",
        KERNEL,
        "to_line = by_rows ? 1 : stride, to_place = by_rows ?",
        "to_line = by_rows ? stride : 1, to_place = !by_rows ?",
        "results",
    ),
    mutation("the last lane's entries", KERNEL, "count += votes.all", "count += votes.below", "results"),
    mutation("a row behind the last", KERNEL, "row < a.fine && column", "row <= a.fine && column", "address"),
    mutation("a zero takes part", KERNEL, "if (weights.element[i] == 0.0f) continue;", "", "results"),
    mutation("writes row N", KERNEL, "if (row >= fine) break;", "if (row > fine) break;", "address", "runtime"),
    mutation("writes column N", KERNEL, "if (column < panel) out", "if (column <= panel) out", "address", "runtime"),
    mutation("a block's second panel", KERNEL, "first += parts * Panel", "first += 2 * parts * Panel", "results"),
)


class _BesideInfinity(UpsampleCase):
    """A row of the matrix is zero: so are a row and a column of the result, infinities or not."""

    def check(self, results: dict[str, Tensor]) -> None:
        unused = (self.matrix == 0).all(1)
        for out in (results["out"][:, :, unused], results["out"].mT[:, :, unused]):
            assert not out.any()


def cases() -> list[UpsampleCase]:
    """Calls on which every mutation shows; of the last one a block takes both panels of a head."""
    matrix = torch.randn(7, 40)
    matrix[3] = 0.0
    x = torch.randn(1, 1, 40, 40)
    x[0, 0, 2, 5] = torch.inf
    return [random_upsample((1, 2), (5, 6)), _BesideInfinity(x, matrix), random_upsample((280, 1), (2, 6))]


test_mutations_are_detected = mutation_test("upsample_relations", cases, MUTATIONS, ONE_INSTANCE)
