"""The kernel of the gradients of bias, activation and scale without a GEMM, run on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.simt_linear import DERIVATIVE_FLOOR, EpilogueGradientCase, derivative, random_epilogue_gradient
from support.simt_mutation import mutation, mutation_test
from support.sixteen_bits import every_number, spacing

TYPES = [torch.bfloat16, torch.float16]
PARTS = ["bias", "gelu", "gelu bias", "gelu_tanh bias", "scale", "scale bias", "gelu scale bias", "gelu_tanh scale"]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("parts", PARTS)
def test_every_combination(result_variant: str, parts: str, dtype: torch.dtype) -> None:
    check_combination(result_variant, parts, dtype)


@pytest.mark.parametrize("parts", ["bias", "gelu scale bias", "gelu_tanh scale"])
def test_accesses_of_combinations(checked_variant: str, parts: str) -> None:
    check_combination(checked_variant, parts, torch.bfloat16)


def check_combination(variant: str, parts: str, dtype: torch.dtype) -> None:
    case = random_epilogue_gradient(70, 264, parts, dtype)
    results = case.run(variant=variant)
    assert set(results) == {
        *(["grad_sum"] if parts != "bias" else []),
        *(f"partial_{name}" for name in ("bias", "scale") if name in parts),
    }
    case.check(results)


@pytest.mark.parametrize("columns", [8, 248, 256, 264])
@pytest.mark.parametrize("rows", [1, 7, 8, 15, 16, 17, 33])
def test_every_size(simt_variant: str, rows: int, columns: int) -> None:
    case = random_epilogue_gradient(rows, columns)
    case.check(case.run(variant=simt_variant, order="reversed"))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_the_derivative_at_every_number(activation: str, dtype: torch.dtype) -> None:
    x = every_number(dtype)
    case = EpilogueGradientCase(torch.ones_like(x).to(dtype), x.to(dtype), None, activation)
    y = case.run()["grad_sum"]
    assert torch.equal(y.isnan(), x.isnan())
    finite = x.isfinite()
    exact = derivative(x.double(), activation)[finite]
    error = (y[finite].double() - exact).abs()
    assert (error <= 0.65 * spacing(exact, dtype) + DERIVATIVE_FLOOR[dtype]).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_partial_sums_are_those_of_their_rows(result_variant: str, dtype: torch.dtype) -> None:
    case = random_epilogue_gradient(50, 40, "bias", dtype)
    partial = case.run(variant=result_variant)["partial_bias"]
    exact = torch.stack([part.double().sum(0) for part in case.grad_out.split(16)])
    torch.testing.assert_close(partial.double(), exact, rtol=0, atol=4e-6)


@pytest.mark.parametrize("rows_per_chunk", [1, 8, 9, 1000])
def test_any_number_of_rows_a_chunk(rows_per_chunk: int) -> None:
    case = replace(random_epilogue_gradient(70, 72), rows_per_chunk=rows_per_chunk)
    case.check(case.run())


@pytest.mark.parametrize("order", ["reversed", "1", "2"])
def test_the_order_of_threads_changes_no_bit(order: str) -> None:
    case = random_epilogue_gradient(70, 264)
    first, second = case.run(), case.run(order=order)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_nan_stays_in_its_column_and_chunk() -> None:
    case = random_epilogue_gradient(70, 264, "bias")
    expected = case.run()["partial_bias"]
    case.grad_out[20, 100] = torch.nan
    partial = case.run()["partial_bias"]
    assert partial[1, 100].isnan()
    partial[1, 100] = expected[1, 100]
    assert torch.equal(partial, expected)


# --- mutations ---

KERNEL = "csrc/linear/epilogue_gradient_kernel.cuh"
OF_BFLOAT16 = ("SIMT_TYPE=vitfast::BFloat16",)

MUTATIONS = (
    mutation(
        "no barrier before warps are added up",
        KERNEL,
        "  sync_threads();\n  const int column",
        "  const int column",
        "results",
        "race",
        "uninitialized",
    ),
    mutation(
        "no barrier before the scratch is used again",
        KERNEL,
        "sync_threads();  // the scratch",
        "// the scratch",
        "results",
        "race",
    ),
    mutation("rows of the next chunk", KERNEL, "end < a.rows ? end : a.rows", "a.rows", "results"),
    mutation("row N read", KERNEL, "row < last;", "row <= last;", "results", "address", "runtime"),
    mutation(
        "columns behind the last one",
        KERNEL,
        "if (column < columns_left)",
        "if (true)",
        "address",
        "runtime",
    ),
    mutation("scale's sums of the argument", KERNEL, "value = gelu_erf<T>(sum[i])", "value = sum[i]", "results"),
    mutation(
        "derivative without its slope",
        "csrc/linear/gelu.cuh",
        "gate + y * gate * (1.0f - gate) * slope",
        "gate",
        "results",
    ),
    mutation("bias before the scale", KERNEL, "gradient[i] *= scale[i] * slope;", "gradient[i] *= slope;", "results"),
)


def cases() -> list:
    """Calls on which every mutation of the kernel shows."""
    return [
        random_epilogue_gradient(70, 264),
        random_epilogue_gradient(33, 40, "bias"),
        random_epilogue_gradient(33, 40, "gelu_tanh"),
    ]


test_mutations_are_detected = mutation_test("epilogue_gradient", cases, MUTATIONS, OF_BFLOAT16)
