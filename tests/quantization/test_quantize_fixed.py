"""Fixed-point rounding against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from vitfast.quantization.quantize_fixed import quantize_fixed


def _expected(value: float, word_length: int, fraction_length: int) -> float:
    steps = round(Fraction(value) * Fraction(2) ** fraction_length)  # half to even
    limit = 2 ** (word_length - 1)
    return float(Fraction(min(max(steps, -limit), limit - 1)) / Fraction(2) ** fraction_length)


@pytest.mark.parametrize("lengths", [(11, 9), (11, 8), (11, 7), (8, 0), (8, -3), (4, 10), (24, 12), (16, 60)])
def test_against_fractions(lengths: tuple[int, int]) -> None:
    step = 2.0 ** -lengths[1]
    limit = 2 ** (lengths[0] - 1)
    near = torch.tensor([-limit - 1, -limit, -2, -1, 0, 1, 2, 3, limit - 2, limit - 1, limit], dtype=torch.float32)
    values = torch.cat([near * step, (near + 0.5) * step, torch.randn(200) * step * limit])
    rounded = quantize_fixed(values, *lengths)
    assert rounded.tolist() == [_expected(value, *lengths) for value in values.tolist()]
    assert torch.equal(quantize_fixed(rounded, *lengths), rounded)


def test_infinities_saturate_and_nan_stays() -> None:
    rounded = quantize_fixed(torch.tensor([torch.inf, -torch.inf, torch.nan]), 8, 4)
    assert rounded[:2].tolist() == [127 / 16, -8.0]
    assert rounded[2].isnan()


@pytest.mark.parametrize(("lengths", "message"), [((1, 0), "word_length"), ((25, 0), "word_length"), ((8, 65), "frac")])
def test_lengths_out_of_range(lengths: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_fixed(torch.zeros(1), *lengths)
