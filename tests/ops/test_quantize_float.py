"""Rounding to a float format, against an oracle of exact rational arithmetic and against torch's own narrow types."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from support.accuracy import assert_same_bits
from support.float_oracle import decode, finite_values, fraction_to_upper, neighbours, round_tensor
from support.samples import DETERMINISTIC_ROUNDINGS, FORMATS
from vitfast import FloatFormat
from vitfast.ops import quantize_float, reference
from vitfast.ops.rounding import float_rounding

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-149), 2.0**-126, 3.4028234663852886e38]
VALUES_A_FORMAT = 300


def _boundaries(format: FloatFormat) -> Tensor:
    """Values of the format, their midpoints, and the float32 neighbours of both, of both signs, and special numbers.

    All of a small format; of a large one its ends, the first normal values and a seeded choice.
    """
    values = finite_values(format)
    if len(values) > VALUES_A_FORMAT:
        chosen = set(range(40)) | set(range(len(values) - 40, len(values)))
        chosen |= {code + d for code in (2**format.mantissa_bits,) for d in range(-20, 20)}
        chosen |= set(random.Random(0).sample(range(len(values)), VALUES_A_FORMAT))
        values = [values[code] for code in sorted(chosen)]
    points = []
    for value in values:
        _, lower, upper = neighbours(value, format)
        points += [lower, (lower + upper) / 2]
    beyond = [format.max_value * factor for factor in (1.0625, 1.5, 2.0, 1000.0)]
    exact = torch.tensor([p for p in points + beyond if p < 2.0**128], dtype=torch.float64)
    middle = exact.float()
    around = [middle, torch.nextafter(middle, torch.tensor(math.inf)), torch.nextafter(middle, torch.tensor(0.0))]
    positive = torch.cat([points[points.isfinite()] for points in around])
    return torch.cat([positive, -positive, torch.tensor(SPECIAL)])


@pytest.mark.parametrize("rounding", DETERMINISTIC_ROUNDINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_boundary_is_rounded_as_exact_arithmetic_does(name: str, rounding: str) -> None:
    format = FORMATS[name]
    x = _boundaries(format)
    assert_same_bits(quantize_float(x, format, rounding=rounding), round_tensor(x, format, rounding))


@pytest.mark.parametrize("overflow", ["inf", "nan", "saturate"])
@pytest.mark.parametrize("name", FORMATS)
def test_overflow_follows_the_option(name: str, overflow: str) -> None:
    format = FORMATS[name]
    if (overflow == "inf" and not format.has_inf) or (overflow == "nan" and not format.has_nan):
        with pytest.raises(ValueError, match="overflow"):
            quantize_float(torch.ones(1), format, overflow=overflow)
        return
    x = _boundaries(format)
    x = x[~(x.abs() < format.max_value / 4)]
    for rounding in DETERMINISTIC_ROUNDINGS:
        expected = round_tensor(x, format, rounding, overflow)
        assert_same_bits(quantize_float(x, format, rounding=rounding, overflow=overflow), expected)


@pytest.mark.parametrize("rounding", DETERMINISTIC_ROUNDINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_idempotent_odd_and_monotone(name: str, rounding: str) -> None:
    format = FORMATS[name]
    random_bits = torch.randint(-(2**31), 2**31, (200_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    x = torch.cat([random_bits, torch.randn(50_000) * format.max_value**0.5, _boundaries(format)])
    x = x[~x.isnan()].sort().values
    rounded = quantize_float(x, format, rounding=rounding, overflow="saturate")
    assert_same_bits(quantize_float(rounded, format, rounding=rounding), rounded)
    assert (rounded.diff() >= 0)[~(rounded[1:] == rounded[:-1])].all()
    negated = quantize_float(-x, format, rounding=rounding, overflow="saturate")
    assert torch.equal(negated, -rounded)


def _assert_as_half(x: Tensor, where: str = "") -> None:
    expected = x.half().float()
    actual = quantize_float(x, FORMATS["fp16"])
    same = (actual.view(torch.int32) == expected.view(torch.int32)) | (actual.isnan() & expected.isnan())
    if not same.all():
        worst = int((~same).nonzero()[0])
        raise AssertionError(
            f"{where}{int((~same).sum())} numbers are not rounded as x.half(): first {x[worst].item()!r} "
            f"(bits {x.view(torch.int32)[worst].item() & 0xFFFFFFFF:#010x}) -> {actual[worst].item()!r}, "
            f"not {expected[worst].item()!r}"
        )


def test_fp16_equals_half_on_all_halves_midpoints_and_their_neighbours() -> None:
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    finite = halves[halves.isfinite()].sort().values
    largest_midpoint = torch.tensor([65520.0, -65520.0])
    middles = torch.cat([(finite[1:] + finite[:-1]) / 2, largest_midpoint])
    up = torch.nextafter(middles, torch.tensor(math.inf))
    down = torch.nextafter(middles, torch.tensor(-math.inf))
    _assert_as_half(torch.cat([halves, middles, up, down, torch.tensor(SPECIAL)]))


def test_fp16_equals_half_on_ten_million_random_bit_patterns() -> None:
    for _ in range(10):
        bits = torch.randint(-(2**31), 2**31, (1_000_000,), dtype=torch.int64).to(torch.int32)
        _assert_as_half(bits.view(torch.float32))


@pytest.mark.slow
def test_fp16_equals_half_on_all_bit_patterns() -> None:
    chunk = 2**24
    for index in range(2**32 // chunk):
        start = index * chunk - 2**31
        bits = torch.arange(start, start + chunk, dtype=torch.int64).to(torch.int32)
        _assert_as_half(bits.view(torch.float32), f"chunk {index} of {2**32 // chunk}: ")


NARROW_TYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def _as_torch(x: Tensor, name: str) -> tuple[Tensor, str]:
    """What torch's type of this name makes of x, and what becomes of too large numbers there.

    Beyond 464, the tie above the maximum 448, and for inf float8_e4m3fn gave NaN once and gives 448 today.
    """
    rounded = x.to(NARROW_TYPES[name]).float()
    if name != "fp8_e4m3fn":
        return rounded, "inf"
    return rounded, "nan" if torch.tensor(1000.0).to(torch.float8_e4m3fn).isnan() else "saturate"


@pytest.mark.parametrize("name", NARROW_TYPES)
def test_every_pattern_of_torchs_narrow_types_and_the_midpoints(name: str) -> None:
    dtype = NARROW_TYPES[name]
    size = dtype.itemsize
    patterns = torch.arange(256**size, dtype=torch.int64).to(torch.uint8 if size == 1 else torch.int16)
    values = patterns.view(dtype).float()
    finite = values[values.isfinite()].double().sort().values
    beyond = finite[-1] + (finite[-1] - finite[-2]) * torch.tensor([0.5, 1.0, 1.5, 100.0])
    exact = torch.cat([values.double(), (finite[1:] + finite[:-1]) / 2, beyond, -beyond])
    middle = exact.float()
    x = torch.cat([middle, *(torch.nextafter(middle, torch.tensor(end)) for end in (math.inf, -math.inf))])
    expected, overflow = _as_torch(x, name)
    assert_same_bits(quantize_float(x, FORMATS[name], overflow=overflow), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3fn", "fp8_e5m2"])
def test_all_bit_patterns_round_as_torchs_narrow_types(name: str) -> None:
    chunk = 2**24
    for index in range(2**32 // chunk):
        start = index * chunk - 2**31
        x = torch.arange(start, start + chunk, dtype=torch.int64).to(torch.int32).view(torch.float32)
        expected, overflow = _as_torch(x, name)
        assert_same_bits(quantize_float(x, FORMATS[name], overflow=overflow), expected, f"chunk {index}")


def _random_and_boundaries(format: FloatFormat) -> Tensor:
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    return torch.cat([bits, torch.randn(100_000) * 100, _boundaries(format)])


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp8_e5m2", torch.float8_e5m2)])
def test_agrees_with_the_narrow_types_of_torch(name: str, dtype: torch.dtype) -> None:
    x = _random_and_boundaries(FORMATS[name])
    assert_same_bits(quantize_float(x, FORMATS[name]), x.to(dtype).float())


def test_agrees_with_float8_e4m3fn_of_torch_where_versions_of_torch_agree() -> None:
    # beyond 464, the tie above the maximum 448, and for inf torch gave NaN once and gives 448 today
    format = FORMATS["fp8_e4m3fn"]
    x = _random_and_boundaries(format)
    of_torch = x.to(torch.float8_e4m3fn).float()
    within = (x.abs() <= 464) | x.isnan()
    assert int(within.sum()) > 500_000
    assert_same_bits(quantize_float(x[within], format), of_torch[within])
    beyond = of_torch[~within]
    overflow = "nan" if beyond[0].isnan() else "saturate"
    assert_same_bits(quantize_float(x[~within], format, overflow=overflow), beyond)


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp6_e2m3", "fp4_e2m1", "fp16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_input_types_keep_their_type(dtype: torch.dtype, name: str) -> None:
    x = torch.cat([torch.randn(500, dtype=torch.float64) * 10.0**exponent for exponent in (-6, -2, 0, 2)]).to(dtype)
    for rounding in DETERMINISTIC_ROUNDINGS:
        assert_same_bits(quantize_float(x, FORMATS[name], rounding=rounding), round_tensor(x, FORMATS[name], rounding))


def test_float64_is_not_rounded_through_float32() -> None:
    just_above_the_tie = torch.tensor([1 + 2.0**-11 + 2.0**-40], dtype=torch.float64)
    assert quantize_float(just_above_the_tie, FORMATS["fp16"]).item() == 1 + 2.0**-10
    assert quantize_float(just_above_the_tie.float(), FORMATS["fp16"]).item() == 1.0


class TestQtorch:
    """What QPyTorch 0.3.0 was measured to do, without importing it."""

    format = FloatFormat.qtorch(5, 10)

    @pytest.mark.parametrize(
        ("x", "expected"),
        [
            (65520.0, 65536.0),
            (70000.0, 70016.0),
            (131008.0, 131008.0),
            (1e30, 131008.0),
            (-1e30, -131008.0),
            (math.inf, 131008.0),
            (-math.inf, -131008.0),
            (math.nan, 131008.0),
            (1.00048828125, 1.0009765625),
            (-1.00048828125, -1.0009765625),
            (2.0**-25, 2.0**-24),
        ],
    )
    def test_half_precision_facts(self, x: float, expected: float) -> None:
        assert quantize_float(torch.tensor(x), self.format, rounding="qtorch").item() == expected

    def test_there_is_no_negative_zero(self) -> None:
        zeros = torch.tensor([-0.0, 0.0, -(2.0**-26)])
        for name in ("qtorch(5,10)", "qtorch(8,10)"):
            rounded = quantize_float(zeros, FORMATS[name], rounding="qtorch")
            assert not rounded[:2].signbit().any()
        assert not quantize_float(zeros, self.format, rounding="qtorch").signbit().any()

    def test_all_non_negative_finite_halves_are_kept(self) -> None:
        halves = torch.arange(0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
        assert torch.equal(quantize_float(halves, self.format, rounding="qtorch"), halves)

    def test_half_the_midpoints_differ_from_ieee(self) -> None:
        halves = torch.arange(0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
        middles = (halves[1:] + halves[:-1]) / 2
        differ = quantize_float(middles, self.format, rounding="qtorch") != middles.half().float()
        subnormal = middles < 2.0**-14
        assert int(differ[subnormal].sum()) == 512
        assert int(differ[~subnormal].sum()) == 15360

    def test_tf32_keeps_inf_and_nan_and_overflows(self) -> None:
        x = torch.tensor([math.inf, -math.inf, 3.4028e38, math.nan])
        rounded = quantize_float(x, FloatFormat.qtorch(8, 10), rounding="qtorch")
        assert rounded[:3].tolist() == [math.inf, -math.inf, math.inf]
        assert rounded[3].isnan()

    @pytest.mark.parametrize(
        ("bits", "expected"),
        [
            (0xFFC00000, -131008.0),  # a NaN keeps its sign
            (0xFF800001, -131008.0),
            (0x7FFFFFFF, -0.0),  # and rounding its mantissa carries into it
            (0xFFFFF000, 0.0),
            (0x32FFFFFF, 2.0**-24),  # 2**-25 less a bit: the shift of subnormal numbers rounds it to a tie
        ],
    )
    def test_arithmetic_on_bit_patterns(self, bits: int, expected: float) -> None:
        x = torch.tensor([bits - 2**32 if bits >> 31 else bits], dtype=torch.int32).view(torch.float32)
        assert_same_bits(quantize_float(x, self.format, rounding="qtorch"), torch.tensor([expected]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("bits", [(5, 10), (8, 10), (4, 3), (2, 0), (8, 22)], ids=str)
    def test_pure_pytorch_gives_the_same_bits(self, bits: tuple[int, int], dtype: torch.dtype) -> None:
        format = FloatFormat.qtorch(*bits)
        x = _bit_patterns_and_points(format)[:50_000].to(dtype)
        if dtype == torch.float16:
            x = x[~x.isnan()]  # on ARM, torch's conversion to float32 loses a NaN's sign and payload
        expected = reference.quantize_float(x, format, "qtorch", format.overflow)
        assert_same_bits(quantize_float(x, format, rounding="qtorch"), expected)

    def test_only_its_own_formats_and_overflow(self) -> None:
        x = torch.ones(1)
        for format in (FloatFormat.fp16(), FloatFormat.fp8_e4m3fn(), FloatFormat.qtorch(5, 23)):
            with pytest.raises(ValueError, match="rounding='qtorch'"):
                quantize_float(x, format, rounding="qtorch")
        with pytest.raises(ValueError, match="overflow"):
            quantize_float(x, self.format, rounding="qtorch", overflow="saturate")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "bits",
        [(5, 10), (8, 10), (8, 7), (5, 2), (4, 3), (3, 2), (2, 3), (2, 1), (6, 9), (7, 22), (2, 0), (8, 0)],
        ids=str,
    )
    def test_is_qtorch_bit_by_bit(self, bits: tuple[int, int]) -> None:
        quant = pytest.importorskip("qtorch.quant")  # compiles an extension, once a machine
        format = FloatFormat.qtorch(*bits)
        x = _bit_patterns_and_points(format, 10_000_000 if bits in ((5, 10), (8, 10)) else 500_000)
        expected = quant.float_quantize(x, *bits, rounding="nearest")
        actual = quantize_float(x, format, rounding="qtorch")
        different = (actual.view(torch.int32) != expected.view(torch.int32)).nonzero()
        # a NaN that QPyTorch adds a number to keeps its bits but for the quiet one: they are compared, too
        assert not len(different), f"{len(different)} differ: {x[different[0]]}"


def _bit_patterns_and_points(format: FloatFormat, count: int = 100_000) -> Tensor:
    """NaN payloads, infinities and zeros; the format's values, their midpoints and neighbours; random bits."""
    payloads = torch.cat([torch.arange(1, 2**10), 2**23 - torch.arange(1, 2**10), 2 ** torch.arange(23)])
    nan = (0x7F800000 + payloads).to(torch.int32)
    nan = torch.cat([nan, nan | -(2**31)]).view(torch.float32)
    codes = 2 ** (format.exponent_bits + format.mantissa_bits) - (2**format.mantissa_bits if format.has_inf else 0)
    first, end = range(min(40_000, codes)), range(max(codes - 10_000, 0), codes)
    values, last = (torch.tensor([decode(code, format) for code in part], dtype=torch.float64) for part in (first, end))
    exact = torch.cat([values, (values[1:] + values[:-1]) / 2, last, (last[1:] + last[:-1]) / 2])
    middle = exact.float()
    around = [middle, *(torch.nextafter(middle, torch.tensor(end)) for end in (math.inf, 0.0))]
    points = torch.cat([*around, torch.tensor([format.max_value * factor for factor in (1.0, 1.25, 2.0)])])
    bits = torch.randint(-(2**31), 2**31, (count,)).to(torch.int32).view(torch.float32)
    return torch.cat([nan, torch.tensor(SPECIAL), points, -points, bits])


class TestStochastic:
    @pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn", "fp4_e2m1", "ieee(3,0)"])
    @pytest.mark.parametrize("x", [1.2, -2.7, 0.3, 1e-9])
    def test_gives_both_neighbours_with_the_right_mean(self, name: str, x: float) -> None:
        format, draws = FORMATS[name], 1_000_000
        x = torch.tensor(x).item()  # a float32
        rounded = quantize_float(torch.full((draws,), x), format, rounding="stochastic", seed=5).double()
        _, lower, upper = neighbours(abs(x), format)
        assert set(rounded.abs().unique().tolist()) <= {lower, upper}
        up = float(fraction_to_upper(abs(x), format))
        share = (rounded.abs() == upper).double().mean().item()
        assert abs(share - up) <= 4 * math.sqrt(up * (1 - up) / draws)
        assert (rounded.signbit() == (x < 0)).all()

    @pytest.mark.parametrize("name", FORMATS)
    def test_values_of_the_format_and_special_numbers_are_rounded_as_ever(self, name: str) -> None:
        format = FORMATS[name]
        values = finite_values(format)
        x = torch.tensor(
            values[:500] + values[-500:] + [-value for value in values[:500]] + [math.inf, -math.inf, math.nan]
        )
        assert_same_bits(
            quantize_float(x, format, rounding="stochastic", seed=1), round_tensor(x, format, "nearest_even")
        )

    def test_above_the_largest_value_it_overflows_with_the_right_probability(self) -> None:
        rounded = quantize_float(torch.full((100_000,), 65512.0), FORMATS["fp16"], rounding="stochastic", seed=2)
        assert set(rounded.unique().tolist()) == {65504.0, math.inf}
        assert abs(rounded.isinf().double().mean().item() - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / 100_000)

    def test_is_a_pure_function_of_the_seed(self) -> None:
        x = torch.randn(5000)
        call = lambda seed: quantize_float(x, FORMATS["fp8_e4m3fn"], rounding="stochastic", seed=seed)  # noqa: E731
        assert torch.equal(call(7), call(7))
        assert torch.equal(call(7), call(torch.tensor(7)))
        assert not torch.equal(call(7), call(8))
        assert not torch.equal(call(7), call(7 + 2**32))

    def test_without_a_seed_it_follows_the_generator_of_torch(self) -> None:
        x = torch.randn(5000)
        call = lambda: quantize_float(x, FORMATS["fp8_e4m3fn"], rounding="stochastic")  # noqa: E731
        torch.manual_seed(1)
        first, second = call(), call()
        torch.manual_seed(1)
        assert torch.equal(call(), first)
        assert not torch.equal(first, second)

    def test_neighbouring_elements_and_blocks_are_independent(self) -> None:
        x = torch.full((2**20,), 1.0 + 2.0**-11)
        up = (quantize_float(x, FORMATS["fp16"], rounding="stochastic", seed=3) > 1).double() * 2 - 1
        for distance in (1, 2, 3, 4, 15, 16, 17, 32, 48, 64, 128, 1024):
            correlation = (up[distance:] * up[:-distance]).mean().item()
            assert abs(correlation) < 4.5 / math.sqrt(x.numel()), f"distance {distance}"

    def test_compiled_and_pure_pytorch_draw_the_same_numbers(self) -> None:
        from vitfast.ops import reference
        from vitfast.ops.rounding import philox_uint32

        x = torch.randn(1003)
        words = philox_uint32(torch.tensor(11), x.numel())
        expected = reference.quantize_float(x, FORMATS["fp16"], "stochastic", "inf", words)
        assert_same_bits(quantize_float(x, FORMATS["fp16"], rounding="stochastic", seed=11), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rounding", [*DETERMINISTIC_ROUNDINGS, "stochastic"])
def test_the_in_place_operator_is_bit_exact(rounding: Any, dtype: torch.dtype) -> None:
    for x in (torch.randn(70, 1001), torch.randn(65, 33).t(), torch.randn(9, 40)[:, 3:20], torch.empty(0, 3)):
        x = (x * 100).to(dtype)
        for name in ("fp16", "fp8_e4m3fn", "tf32"):
            expected = quantize_float(x, FORMATS[name], rounding=rounding, seed=5)
            memory = x.clone(memory_format=torch.preserve_format)
            seed = torch.tensor(5) if rounding == "stochastic" else None
            torch.ops.vitfast.quantize_float_(memory, float_rounding(FORMATS[name], rounding), seed)
            assert_same_bits(memory, expected)


def test_results_that_exceed_the_caches_are_written_past_them_whole() -> None:
    x = torch.randn(2**21 + 2**16 + 77)
    for name in ("fp16", "fp8_e4m3fn", "ieee(3,0)"):
        for rounding in (*DETERMINISTIC_ROUNDINGS, "stochastic"):
            whole = quantize_float(x, FORMATS[name], rounding=rounding, seed=1)  # type: ignore[arg-type]
            first = quantize_float(x[: 2**20], FORMATS[name], rounding=rounding, seed=1)  # type: ignore[arg-type]
            assert torch.equal(whole[: 2**20], first)
            if rounding != "stochastic":
                last = quantize_float(x[2**20 :], FORMATS[name], rounding=rounding)  # type: ignore[arg-type]
                assert torch.equal(whole[2**20 :], last)


@pytest.mark.parametrize("rounding", [*DETERMINISTIC_ROUNDINGS, "stochastic"])
def test_the_gradient_passes_straight_through(rounding: str) -> None:
    x = torch.cat([torch.randn(100) * 1e5, torch.tensor(SPECIAL)]).requires_grad_()
    grad = torch.randn_like(x)
    quantize_float(x, FORMATS["fp16"], rounding=rounding, seed=0).backward(grad)
    assert_same_bits(x.grad, grad)
