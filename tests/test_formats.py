"""The formats: constants of the specifications, the two families, and refused values."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from support.float_oracle import finite_values
from vitfast.formats import FloatFormat


@pytest.mark.parametrize(
    ("format", "bits", "max_value", "min_normal", "min_subnormal", "has_inf", "has_nan", "overflow"),
    [
        (FloatFormat.fp16(), (5, 10), 65504.0, 2.0**-14, 2.0**-24, True, True, "inf"),
        (FloatFormat.bf16(), (8, 7), 3.3895313892515355e38, 2.0**-126, 2.0**-133, True, True, "inf"),
        (FloatFormat.tf32(), (8, 10), 3.4011621342146535e38, 2.0**-126, 2.0**-136, True, True, "inf"),
        (FloatFormat.fp8_e4m3fn(), (4, 3), 448.0, 2.0**-6, 2.0**-9, False, True, "saturate"),
        (FloatFormat.fp8_e5m2(), (5, 2), 57344.0, 2.0**-14, 2.0**-16, True, True, "inf"),
        (FloatFormat.fp6_e3m2(), (3, 2), 28.0, 0.25, 0.0625, False, False, "saturate"),
        (FloatFormat.fp6_e2m3(), (2, 3), 7.5, 1.0, 0.125, False, False, "saturate"),
        (FloatFormat.fp4_e2m1(), (2, 1), 6.0, 1.0, 0.5, False, False, "saturate"),
        (FloatFormat.ieee(3, 0), (3, 0), 8.0, 0.25, 0.25, True, True, "inf"),
        (FloatFormat.qtorch(5, 10), (5, 10), 131008.0, 2.0**-14, 2.0**-24, False, False, "saturate"),
    ],
)
def test_presets(
    format: FloatFormat,
    bits: tuple[int, int],
    max_value: float,
    min_normal: float,
    min_subnormal: float,
    has_inf: bool,
    has_nan: bool,
    overflow: str,
) -> None:
    assert (format.exponent_bits, format.mantissa_bits) == bits
    assert (format.max_value, format.min_normal, format.min_subnormal) == (max_value, min_normal, min_subnormal)
    assert (format.has_inf, format.has_nan, format.overflow) == (has_inf, has_nan, overflow)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (FloatFormat.fp16(), torch.float16),
        (FloatFormat.bf16(), torch.bfloat16),
        (FloatFormat.fp8_e4m3fn(), torch.float8_e4m3fn),
        (FloatFormat.fp8_e5m2(), torch.float8_e5m2),
        (FloatFormat.ieee(8, 23), torch.float32),
    ],
)
def test_agrees_with_torch_finfo(format: FloatFormat, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    assert (format.max_value, format.min_normal) == (info.max, info.smallest_normal)
    assert format.min_subnormal == info.smallest_normal * info.eps
    assert 2.0**-format.mantissa_bits == info.eps


@pytest.mark.parametrize(
    ("format", "count"),
    [
        (FloatFormat.fp4_e2m1(), 8),
        (FloatFormat.fp6_e3m2(), 32),
        (FloatFormat.fp6_e2m3(), 32),
        (FloatFormat.fp8_e4m3fn(), 127),
        (FloatFormat.fp8_e5m2(), 124),
        (FloatFormat.qtorch(3, 2), 32),
        (FloatFormat.ieee(2, 0), 3),
    ],
)
def test_uses_all_codes_that_the_specification_leaves_to_numbers(format: FloatFormat, count: int) -> None:
    assert len(finite_values(format)) == count


@pytest.mark.parametrize("exponent_bits", range(2, 9))
def test_families_exist_for_all_widths(exponent_bits: int) -> None:
    for mantissa_bits in range(24):
        ieee = FloatFormat.ieee(exponent_bits, mantissa_bits)
        assert (ieee.has_inf, ieee.has_nan, ieee.signed_zero, ieee.overflow) == (True, True, True, "inf")
        if (exponent_bits, mantissa_bits) == (8, 23):
            continue
        qtorch = FloatFormat.qtorch(exponent_bits, mantissa_bits)
        assert not qtorch.signed_zero
        assert qtorch.has_inf == qtorch.has_nan == (exponent_bits == 8)
        # below 8 exponent bits the top exponent code holds numbers: twice the range and a bit
        assert qtorch.max_value == ieee.max_value * (1 if exponent_bits == 8 else 2)


def test_qtorch_8_23_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"qtorch\(8, 23\).*flips signs"):
        FloatFormat.qtorch(8, 23)


@pytest.mark.parametrize("family", [FloatFormat.ieee, FloatFormat.qtorch])
@pytest.mark.parametrize("bits", [(1, 3), (9, 3), (5, -1), (5, 24), (0, 0)])
def test_families_refuse_bits_out_of_range(family: object, bits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="2 to 8 exponent bits and 0 to 23 mantissa bits"):
        family(*bits)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exponent_bits": 1}, "exponent_bits"),
        ({"exponent_bits": 9}, "exponent_bits"),
        ({"mantissa_bits": -1}, "mantissa_bits"),
        ({"mantissa_bits": 24}, "mantissa_bits"),
        ({"overflow": "wrap"}, "overflow"),
        ({"has_inf": False}, "has_inf"),
        ({"has_nan": False, "overflow": "nan"}, "has_nan"),
        ({"max_value": float("inf")}, "max_value"),
        ({"max_value": float("nan")}, "max_value"),
        ({"max_value": -1.0}, "max_value"),
        ({"max_value": 65503.0}, "max_value"),
        ({"max_value": 65520.0}, "max_value"),
    ],
)
def test_contradicting_fields_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FloatFormat.fp16(), **changes)


def test_the_smallest_normal_value_may_be_the_largest() -> None:
    fp16 = FloatFormat.fp16()
    assert dataclasses.replace(fp16, max_value=fp16.min_normal).max_value == 2.0**-14


def test_is_a_frozen_value() -> None:
    assert FloatFormat.fp16() == FloatFormat.ieee(5, 10)
    assert len({FloatFormat.fp16(), FloatFormat.ieee(5, 10), FloatFormat.bf16()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        FloatFormat.fp16().max_value = 1.0  # type: ignore[misc]
