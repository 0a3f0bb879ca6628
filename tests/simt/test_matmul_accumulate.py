"""The CUDA kernel of matmul_accumulate, run on the host, against the CPU's operator, bit by bit."""

from __future__ import annotations

import pytest
import torch

from support.simt_matmul_accumulate import AccumulateCase, random_accumulate
from support.simt_mutation import mutation, mutation_test
from vitfast.formats import FloatFormat

CHUNKS = (1, 4, 8, 16, 32, 33, None)
# one tile and its tails, several tiles; less than a round of the depth, whole rounds, a rest
SHAPES = ((1, 1, 1), (7, 5, 31), (64, 64, 32), (65, 63, 33), (70, 130, 75))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_chunk_and_tail(result_variant: str, shape: tuple[int, int, int], chunk: int | None) -> None:
    case = random_accumulate(*shape, chunk)
    case.check(case.run(variant=result_variant))


@pytest.mark.parametrize("chunk", [1, 8, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accesses_at_every_tail(checked_variant: str, shape: tuple[int, int, int], chunk: int | None) -> None:
    case = random_accumulate(*shape, chunk)
    case.check(case.run(variant=checked_variant))


@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero", "qtorch"])
@pytest.mark.parametrize("chunk", [1, 4, None])
def test_every_rounding(result_variant: str, chunk: int | None, rounding: str) -> None:
    formats = [FloatFormat.fp16(), FloatFormat.bf16(), FloatFormat.fp8_e4m3fn()]
    if rounding == "qtorch":
        formats = [FloatFormat.qtorch(5, 10), FloatFormat.qtorch(8, 10)]
    for format in formats:
        case = random_accumulate(9, 10, 40, chunk, format=format, rounding=rounding)
        case.check(case.run(variant=result_variant))


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_overflow_underflow_and_non_finite_values(simt_variant: str, chunk: int | None) -> None:
    x = torch.tensor(
        [
            [3e4, 3e4, 3e4, -3e4, 1.0],
            [1e-30, 1e-30, -1e-30, 1e-45, 0.0],
            [torch.inf, 1.0, 1.0, 1.0, 1.0],
            [torch.nan, 1.0, 1.0, 1.0, 1.0],
            [-0.0, -0.0, 0.0, -0.0, -0.0],
            [1.0, 2.0**-11, 2.0**-11, -1.0, 2.0**-24],
        ]
    )
    weight = torch.cat([torch.ones(1, 5), x, -x])
    for format in (FloatFormat.fp16(), FloatFormat.fp8_e4m3fn(), FloatFormat.bf16()):
        case = AccumulateCase(x, weight, chunk, format)
        case.check(case.run(variant=simt_variant))


def test_products_are_not_rounded_before_the_sum(simt_variant: str) -> None:
    # 1 - (1 + e)(1 - e) = e squared, which a rounded product loses
    e = 2.0**-13
    case = AccumulateCase(torch.tensor([[1.0, 1.0 + e]]), torch.tensor([[1.0, e - 1.0]]), None, FloatFormat.bf16())
    results = case.run(variant=simt_variant)
    assert results["out"].item() == e * e
    case.check(results)


def test_nan_is_the_largest_number_to_qtorch(simt_variant: str) -> None:
    x = torch.tensor([[torch.nan, 1.0], [torch.inf, -torch.inf]])
    case = AccumulateCase(x, torch.ones(3, 2), 2, FloatFormat.qtorch(5, 10), "qtorch")
    assert torch.equal(case.run(variant=simt_variant)["out"], torch.full((2, 3), 131008.0))


def test_empty_sum_is_zero(simt_variant: str) -> None:
    case = random_accumulate(3, 5, 0, 4)
    assert torch.equal(case.run(variant=simt_variant)["out"], torch.zeros(3, 5))


@pytest.mark.parametrize("order", ["reversed", "1", "2"])
def test_the_order_of_threads_changes_no_bit(order: str) -> None:
    case = random_accumulate(70, 70, 70, 8)
    case.check(case.run(order=order))


# --- mutations ---

KERNEL = "csrc/matmul_accumulate/matmul_accumulate_kernel.cuh"

MUTATIONS = (
    mutation("no barrier before a round", KERNEL, "sync_threads();  // every", "// every", "results", "race"),
    mutation("no barrier behind it", KERNEL, "    sync_threads();\n", "", "results", "uninitialized"),
    mutation("the rest of a chunk", KERNEL, "if (left_in_chunk < a.chunk)", "if (false)", "results"),
    mutation("a chunk without end", KERNEL, "      left_in_chunk -= end - k;\n", "", "results"),
    mutation("reads row N", KERNEL, "row < rows ? row : rows - 1", "row", "address"),
    mutation("writes column N", KERNEL, "column + j < a.columns", "column + j <= a.columns", "address", "runtime"),
)


def cases() -> list:
    """Calls on which every mutation shows."""
    return [random_accumulate(70, 67, 75, 8), random_accumulate(64, 64, 64, 20)]


test_mutations_are_detected = mutation_test("matmul_accumulate", cases, MUTATIONS)
