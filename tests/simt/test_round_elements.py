"""The CUDA kernel of quantize_float and quantize_fixed, run on the host, against the CPU's operators, bit by bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support import simt
from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.rounding import FIXED_OVERFLOW_CODES, QTORCH_NEAREST, ROUNDING_CODES, float_rounding

# the integer of the same size
TYPES = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}
FORMATS = {
    "fp16": FloatFormat.fp16(),
    "fp8_e4m3fn": FloatFormat.fp8_e4m3fn(),
    "qtorch_5_10": FloatFormat.qtorch(5, 10),
    "ieee_8_10": FloatFormat.ieee(8, 10),
}
SEED = 1234567890123


def every_kind_of_number(dtype: torch.dtype, count: int) -> Tensor:
    """Random bits (subnormals, infinities, NaN) and numbers near 1."""
    bits = torch.randint(-(2**63), 2**63 - 1, (count,)).view(torch.int64)
    numbers = bits.to(TYPES[dtype]).view(dtype) if dtype != torch.float64 else bits.view(dtype)
    return torch.where(torch.rand(count) < 0.5, numbers, torch.randn(count).to(dtype))


def run_kernel(
    x: Tensor,
    options: dict[str, object],
    *,
    offset: int = 0,
    in_place: bool = False,
    variant: str = "plain",
) -> Tensor:
    """Rounds ``x``; the kernel sees it ``offset`` elements into its memory."""
    places = {
        "type": str(x.dtype).removeprefix("torch."),
        "count": x.numel(),
        "offset": offset,
        "in_place": int(in_place),
    }
    memory = torch.cat([torch.zeros(offset, dtype=x.dtype), x])
    inputs = {"x": memory, "seed": torch.tensor([SEED])}
    outputs = {"y": (memory.shape, x.dtype)}
    return simt.run("round_elements", inputs, outputs, {**options, **places}, variant=variant)["y"][offset:]


def float_options(format: FloatFormat, rounding: str = "nearest_even") -> dict[str, object]:
    """What the program is told of a rounding to a float format."""
    return {"operator": "quantize_float", "rounding": ",".join(map(str, float_rounding(format, rounding)))}


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """The same bits; a NaN may be any NaN."""
    assert torch.equal(actual.isnan(), expected.isnan())
    kept = ~expected.isnan()
    integer = TYPES[expected.dtype]
    assert torch.equal(actual[kept].view(integer), expected[kept].view(integer))


def check_float(variant: str, dtype: torch.dtype, rounding: str, format: str, count: int, offset: int) -> None:
    x = every_kind_of_number(dtype, count)
    y = run_kernel(x, float_options(FORMATS[format], rounding), offset=offset, variant=variant)
    seed = SEED if rounding == "stochastic" else None
    assert_same(y, ops.quantize_float(x, FORMATS[format], rounding=rounding, seed=seed))


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("rounding", ROUNDING_CODES)
@pytest.mark.parametrize("format", FORMATS)
def test_device_code_rounds_as_the_cpu(result_variant: str, dtype: torch.dtype, rounding: str, format: str) -> None:
    check_float(result_variant, dtype, rounding, format, 64 * 370 + 29, 0)


# several rounds of the grid and a rest; the same without alignment; fewer than a block; a block; one element
@pytest.mark.parametrize(
    ("count", "offset"), [(64 * 70 + 29, 0), (64 * 9 + 5, 1), (63, 0), (64, 0), (1, 0), (0, 0)], ids=str
)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_any_number_of_elements(simt_variant: str, dtype: torch.dtype, count: int, offset: int) -> None:
    check_float(simt_variant, dtype, "stochastic", "fp16", count, offset)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("bits", [(5, 10), (8, 10)], ids=str)
def test_device_code_rounds_as_qtorch(result_variant: str, dtype: torch.dtype, bits: tuple[int, int]) -> None:
    format, x = FloatFormat.qtorch(*bits), every_kind_of_number(dtype, 64 * 30 + 7)
    y = run_kernel(x, float_options(format, "qtorch"), variant=result_variant)
    assert_same(y, ops.quantize_float(x, format, rounding="qtorch"))


def test_device_code_rounds_in_place(simt_variant: str) -> None:
    x = every_kind_of_number(torch.float32, 64 * 5 + 3)
    y = run_kernel(x, float_options(FloatFormat.fp16()), in_place=True, variant=simt_variant)
    assert_same(y, ops.quantize_float(x, FloatFormat.fp16()))


# (overflow, word length, fraction length)
FIXED = [("saturate", 11, 9), ("wrap", 8, -3), ("unbounded", 16, 20)]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("rounding", [*ROUNDING_CODES, "qtorch"])
def test_device_code_rounds_to_fixed_point_as_the_cpu(result_variant: str, dtype: torch.dtype, rounding: str) -> None:
    check_fixed(result_variant, dtype, rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accesses_of_the_rounding_to_fixed_point(checked_variant: str, dtype: torch.dtype) -> None:
    check_fixed(checked_variant, dtype, "nearest_even")


def check_fixed(variant: str, dtype: torch.dtype, rounding: str) -> None:
    as_qtorch = rounding == "qtorch"
    for overflow, word_length, fraction_length in FIXED:
        if as_qtorch and overflow == "wrap":
            continue
        options: dict[str, object] = {
            "operator": "quantize_fixed",
            "rounding": QTORCH_NEAREST if as_qtorch else ROUNDING_CODES[rounding],
            "word_length": word_length,
            "fraction_length": fraction_length,
            "symmetric": int(overflow == "saturate"),
            "overflow": FIXED_OVERFLOW_CODES[overflow],
        }
        for count, offset in ((64 * 20 + 29, 0), (64 * 2 + 5, 1)):
            x = every_kind_of_number(dtype, count)
            y = run_kernel(x, options, offset=offset, variant=variant)
            expected = ops.quantize_fixed(
                x,
                word_length,
                fraction_length,
                rounding="nearest_even" if as_qtorch else rounding,  # type: ignore[arg-type]
                overflow=overflow,  # type: ignore[arg-type]
                symmetric=overflow == "saturate",
                numerics="qtorch" if as_qtorch else "ieee",
                seed=SEED if rounding == "stochastic" else None,
            )
            assert_same(y, expected)
