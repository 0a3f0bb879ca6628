"""The epilogue of the backward CUDA GEMMs, run on the host: GELU's derivative and column sums."""

from __future__ import annotations

import pytest
import torch

from support.simt_linear import DERIVATIVE_FLOOR, GradientCase, derivative, random_gradient
from support.simt_mutation import mutation, mutation_test
from support.sixteen_bits import every_number, spacing

TYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_derivative_at_every_number(result_variant: str, dtype: torch.dtype) -> None:
    x = every_number(dtype)
    y = GradientCase(torch.ones_like(x), x.to(dtype)).run(variant=result_variant)["y"]
    assert torch.equal(y.isnan(), x.isnan())
    finite = x.isfinite()
    exact = derivative(x.double(), "gelu")[finite]
    error = (y[finite].double() - exact).abs()
    # what rounding to the type costs, a little more for the polynomial; the derivative passes through zero, where its
    # error is a small part of the numbers around it
    allowed = 0.65 * spacing(exact, dtype) + DERIVATIVE_FLOOR[dtype]
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"at {x[finite][worst]}: {y[finite][worst]}, not {exact[worst]}"
    assert (y[x == torch.inf] == 1).all()
    assert (y[x == -torch.inf].float().abs() <= 1e-6).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_gradients_and_sums(result_variant: str, dtype: torch.dtype) -> None:
    case = random_gradient(300, 104, dtype)
    case.check(case.run(variant=result_variant))


@pytest.mark.parametrize("columns", [8, 32, 40])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 120, 128, 129])
def test_every_size(simt_variant: str, rows: int, columns: int) -> None:
    case = random_gradient(rows, columns)
    case.check(case.run(variant=simt_variant))


@pytest.mark.parametrize("order", ["reversed", "1", "2"])
def test_the_order_of_threads_changes_no_bit(order: str) -> None:
    case = random_gradient(300, 72)
    first, second = case.run(), case.run(order=order)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_nan_stays_in_its_column_and_tile() -> None:
    case = random_gradient(300, 64)
    expected = case.run()["partial"]
    case.sums[130, 40] = torch.nan
    partial = case.run()["partial"]
    assert partial[1, 40].isnan()
    partial[1, 40] = expected[1, 40]
    assert torch.equal(partial, expected)


def test_sums_are_of_gradients_before_they_are_rounded() -> None:
    # rounding to bfloat16 would change each gradient by 2e-3; the derivative at 30 is one
    sums = torch.full((128, 32), 1 + 2.0**-9)
    results = GradientCase(sums, torch.full_like(sums, 30).bfloat16()).run()
    assert torch.equal(results["y"], torch.ones(128, 32).bfloat16())
    torch.testing.assert_close(results["partial"], sums.sum(0, keepdim=True), rtol=1e-5, atol=0.0)


# --- mutations ---

SUMS = "csrc/linear/column_sums.cuh"
EPILOGUE = "csrc/linear/gemm_epilogue.cuh"
GELU = "csrc/linear/gelu.cuh"
OF_BFLOAT16 = ("SIMT_TYPE=vitfast::BFloat16",)

MUTATIONS = (
    mutation("no mask of rows", SUMS, "rows_left > 0 ?", "true ?", "results"),
    mutation("no mask of the second rows", SUMS, "rows_left > 8 ?", "rows_left > 0 ?", "results"),
    mutation("one row too few", SUMS, "rows_left > 8 ?", "rows_left > 9 ?", "results"),
    mutation("column of another tile", SUMS, "kept_column / 2 * 8", "kept_column % 4 * 8", "results", "race"),
    mutation(
        "half given away", SUMS, "? columns[i] : columns[i + half]", "? columns[i + half] : columns[i]", "results"
    ),
    mutation("a group left out", SUMS, "int group = 0;", "int group = 1;", "results"),
    mutation("GELU, not its derivative", EPILOGUE, "gelu_erf_derivative<T>(", "gelu_erf<T>(", "results"),
    mutation("derivative not mirrored", GELU, "x < 0.0f ? below_zero : 1.0f - below_zero", "below_zero", "results"),
)


def cases() -> list:
    """Calls on which every mutation of the product's epilogue shows."""
    return [random_gradient(140, 72), random_gradient(129, 40)]


test_mutations_are_detected = mutation_test("gemm_gradient", cases, MUTATIONS, OF_BFLOAT16)
