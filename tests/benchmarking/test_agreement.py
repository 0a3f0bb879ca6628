from __future__ import annotations

import math

import pytest
import torch

from vitfast.benchmarking.agreement import agrees, joined, relative_l2


def test_distance_is_relative_to_the_reference():
    reference = torch.tensor([[3.0, 4.0]])
    assert relative_l2(torch.tensor([[3.0, 4.5]]), reference) == pytest.approx(0.1)
    assert relative_l2(torch.zeros(1, 2), reference) == pytest.approx(1.0)
    assert relative_l2(reference.clone(), reference) == 0.0


def test_small_distances_of_large_vectors_are_not_rounded_away():
    reference = torch.full((100_000,), 1e4)
    result = reference.double() * (1 + 1e-9)
    assert relative_l2(result, reference) == pytest.approx(1e-9, rel=1e-3)


def test_nan_never_agrees():
    error = relative_l2(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0]))
    assert math.isnan(error)
    assert not agrees(error, "bf16")


def test_two_zeros_agree_and_something_beside_zero_does_not():
    assert relative_l2(torch.zeros(3), torch.zeros(3)) == 0.0
    assert not agrees(relative_l2(torch.ones(3), torch.zeros(3)), "bf16")


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 1\].*\[1, 2\]"):
        relative_l2(torch.ones(2, 1), torch.ones(1, 2))


def test_precisions_allow_what_their_rounding_explains():
    assert agrees(1e-6, "fp32")
    assert not agrees(5e-3, "fp32")
    assert agrees(5e-3, "bf16")
    assert not agrees(0.5, "bf16")


def test_joined_keeps_order_and_widest_type():
    assert joined([torch.tensor([[1.0], [2.0]]), torch.tensor(3)]).tolist() == [1.0, 2.0, 3.0]
    assert joined([torch.ones(2, dtype=torch.bfloat16)]).dtype == torch.float32
    assert joined([torch.ones(2, dtype=torch.float64), torch.ones(1)]).dtype == torch.float64
