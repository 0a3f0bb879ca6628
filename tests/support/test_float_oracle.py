"""The oracle against known values."""

from __future__ import annotations

import math

import pytest
import torch

from support.float_oracle import finite_values, fraction_to_upper, neighbours, round_float
from vitfast.formats import FloatFormat


def test_fp16_values_are_those_of_torch() -> None:
    codes = torch.arange(0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16)
    assert finite_values(FloatFormat.fp16()) == codes.double().tolist()


def test_fp4_values_are_the_published_ones() -> None:
    assert finite_values(FloatFormat.fp4_e2m1()) == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("x", "rounding", "expected"),
    [
        (2.5, "nearest_even", 2.0),
        (3.5, "nearest_even", 4.0),
        (2.5, "nearest_away", 3.0),
        (-2.5, "nearest_away", -3.0),
        (2.9, "toward_zero", 2.0),
        (2.1, "away_from_zero", 3.0),
        (5.0, "nearest_even", 4.0),
        (0.25, "nearest_even", 0.0),
        (0.25, "nearest_away", 0.5),
        (7.0, "nearest_even", 6.0),
        (1e30, "nearest_even", 6.0),
        (-math.inf, "nearest_even", -6.0),
        (math.nan, "nearest_even", 6.0),
    ],
)
def test_fp4_by_hand(x: float, rounding: str, expected: float) -> None:
    assert round_float(x, FloatFormat.fp4_e2m1(), rounding) == expected


def test_without_mantissa_bits_a_tie_goes_to_the_even_exponent_code() -> None:
    powers = FloatFormat.ieee(3, 0)  # 0, 2**-2 (code 1) ... 2**3 (code 6)
    assert finite_values(powers) == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert [round_float(x, powers, "nearest_even") for x in (0.125, 0.375, 0.75, 1.5, 3.0)] == [0.0, 0.5, 0.5, 2.0, 2.0]


def test_beyond_the_largest_value_the_spacing_doubles_with_each_power_of_two() -> None:
    assert neighbours(70000.0, FloatFormat.fp16())[1:] == (69952.0, 70016.0)
    assert neighbours(1e30, FloatFormat.fp4_e2m1())[1] <= 1e30 < neighbours(1e30, FloatFormat.fp4_e2m1())[2]
    assert fraction_to_upper(65528.0, FloatFormat.fp16()) == 0.75
