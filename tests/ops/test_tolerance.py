"""The tolerance rule detects each kind of error that it is meant for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LOW = [torch.bfloat16, torch.float16, torch.float32]


def _product(dtype: torch.dtype, rows: int = 64, inner: int = 96) -> tuple[Tensor, Tensor]:
    """A matrix product in ``dtype`` and in float64."""
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, 48).to(dtype)
    return a @ b, a.double() @ b.double()


def _check(actual: Tensor, torch_result: Tensor, exact: Tensor) -> None:
    assert_as_accurate(actual, torch_result, exact, factor=FORWARD_FACTOR, name="out")


@pytest.mark.parametrize("dtype", DTYPES)
def test_passes_torch_itself_and_the_correctly_rounded_result(dtype: torch.dtype) -> None:
    result, exact = _product(dtype)
    _check(result, result, exact)
    _check(exact.to(dtype), result, exact)


@pytest.mark.parametrize("dtype", LOW)
def test_another_order_of_summation_passes(dtype: torch.dtype) -> None:
    a, b = torch.randn(64, 96).to(dtype), torch.randn(96, 48).to(dtype)
    in_halves = (a[:, :48].double() @ b[:48].double()).to(dtype) + (a[:, 48:].double() @ b[48:].double()).to(dtype)
    _check(in_halves, a @ b, a.double() @ b.double())


@pytest.mark.parametrize("dtype", LOW)
def test_one_wrong_element_fails_and_is_named(dtype: torch.dtype) -> None:
    result, exact = _product(dtype)
    wrong = result.clone()
    own_error = (result.double() - exact).abs().max().item()  # depends on the processor
    wrong[5, 7] += 8 * (torch.finfo(dtype).eps * exact.abs().max().item() + own_error)
    with pytest.raises(AssertionError, match=r"worst at \(5, 7\)[^;]*; error .*torch's there"):
        _check(wrong, result, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_truncation_instead_of_rounding_is_seen_by_the_gain(dtype: torch.dtype) -> None:
    # with torch correctly rounded, truncated results err twice as much at worst: only the aggregate tells them apart
    exact = torch.randn(64, 48, dtype=torch.float64)
    rounded = exact.to(dtype)
    too_large = rounded.double().abs() > exact.abs()
    truncated = torch.where(too_large, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)
    _check(rounded, rounded, exact)
    with pytest.raises(AssertionError, match=r"rounding noise\n.*\n  gain"):
        _check(truncated, rounded, exact)


@pytest.mark.parametrize("dtype", LOW)
def test_a_small_common_factor_is_seen(dtype: torch.dtype) -> None:
    result, exact = _product(dtype)
    with pytest.raises(AssertionError, match="gain"):
        _check((exact * (1 + 8 * torch.finfo(dtype).eps)).to(dtype), result, exact)


def test_many_errors_below_the_largest_are_seen_by_the_root_mean_square() -> None:
    exact = torch.randn(64, 64, dtype=torch.float64)
    one_outlier = exact.float()
    one_outlier[0, 0] += 1e-3
    noisy = exact.float() + 1e-4 * torch.randn(64, 64)
    with pytest.raises(AssertionError, match="root mean square"):
        _check(noisy, one_outlier, exact)


def test_a_missing_small_gradient_fails() -> None:
    exact = 1e-5 * torch.randn(64, dtype=torch.float64)
    with pytest.raises(AssertionError, match="largest error"):
        _check(torch.zeros(64, dtype=torch.bfloat16), exact.bfloat16(), exact)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_element_fails_unless_the_exact_one_is_the_same(value: float) -> None:
    exact = torch.randn(8, 8, dtype=torch.float64)
    result = exact.float()
    broken = result.clone()
    broken[3, 4] = value
    with pytest.raises(AssertionError, match=r"first at \(3, 4\)"):
        _check(broken, result, exact)
    exact[3, 4] = value
    _check(broken, broken, exact)
    with pytest.raises(AssertionError, match=r"first at \(3, 4\)"):
        _check(result, broken, exact)


def test_an_overflow_of_the_dtype_is_the_exact_result_rounded() -> None:
    exact = torch.tensor([1e5, 1.0], dtype=torch.float64)
    overflowed = torch.tensor([float("inf"), 1.0], dtype=torch.float16)
    _check(overflowed, overflowed, exact)


def test_wrong_shape_and_dtype_fail() -> None:
    result, exact = _product(torch.float32)
    with pytest.raises(AssertionError, match="shape"):
        _check(result.T, result, exact)
    with pytest.raises(AssertionError, match="float16"):
        _check(result.half(), result, exact)


def test_cancelled_numbers_may_leave_the_rounding_of_their_own_magnitude() -> None:
    exact, torch_result = torch.zeros(4, dtype=torch.float64), torch.zeros(4)
    leftover = torch.full((4,), 1e-8)
    with pytest.raises(AssertionError, match="largest error"):
        _check(leftover, torch_result, exact)
    assert_as_accurate(leftover, torch_result, exact, factor=FORWARD_FACTOR, magnitude=1.0)


def test_empty_results_pass() -> None:
    _check(torch.empty(0, 3), torch.empty(0, 3), torch.empty(0, 3, dtype=torch.float64))
