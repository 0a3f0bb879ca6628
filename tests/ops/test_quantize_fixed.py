"""Rounding to fixed point, against exact fractions and against QPyTorch itself."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from support.accuracy import assert_same_bits
from support.fixed_oracle import round_tensor
from vitfast import ops
from vitfast.ops import quantize_fixed, reference
from vitfast.ops.rounding import philox_uint32

# myrtle-vision's FixedPoint11Integral2, 3 and 4; whole numbers; coarser and finer ones; the widest; the ends
LENGTHS = [(11, 9), (11, 8), (11, 7), (8, 0), (8, -3), (4, 10), (24, 12), (16, 60), (2, -64), (24, 64)]
ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero")
OVERFLOWS = ("saturate", "wrap", "unbounded")
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-149), 3.4028234663852886e38]


def _boundaries(word_length: int, fraction_length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of the format and beyond it, their midpoints, the neighbours of both, and special numbers."""
    step, limit = 2.0**-fraction_length, 2 ** (word_length - 1)
    counts = [0, 1, 2, 3, 5, limit - 2, limit - 1, limit, limit + 1, 2 * limit - 1, 2 * limit, 3 * limit + 1]
    numbers = torch.tensor([(count + half) * step for count in counts for half in (0.0, 0.5)], dtype=torch.float64)
    middle = numbers.to(dtype)
    up, down = (torch.nextafter(middle, torch.tensor(end, dtype=dtype)) for end in (math.inf, 0.0))
    positive = torch.cat([middle, up, down, (torch.randn(100).double().abs() * limit * step).to(dtype)])
    return torch.cat([positive, -positive, torch.tensor(SPECIAL).to(dtype)])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_boundary_is_rounded_as_fractions_are(rounding: Any, overflow: Any, lengths: tuple[int, int]) -> None:
    x = _boundaries(*lengths)
    expected = round_tensor(x, *lengths, rounding=rounding, overflow=overflow)
    rounded = quantize_fixed(x, *lengths, rounding=rounding, overflow=overflow)
    assert_same_bits(rounded, torch.where(expected == 0, 0.0, expected))  # there is no -0
    if overflow != "wrap" or rounded.isfinite().all():
        assert_same_bits(quantize_fixed(rounded, *lengths, rounding=rounding, overflow=overflow), rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS[:7], ids=str)
def test_other_types_are_kept(dtype: torch.dtype, lengths: tuple[int, int]) -> None:
    x = _boundaries(*lengths, dtype)
    for rounding, overflow in itertools.product(ROUNDINGS, OVERFLOWS):
        expected = round_tensor(x, *lengths, rounding=rounding, overflow=overflow)
        rounded = quantize_fixed(x, *lengths, rounding=rounding, overflow=overflow)  # type: ignore[arg-type]
        assert_same_bits(rounded, torch.where(expected == 0, 0.0, expected).to(dtype))


@pytest.mark.parametrize("lengths", LENGTHS[:5], ids=str)
def test_symmetric_leaves_the_smallest_number_out(lengths: tuple[int, int]) -> None:
    x = _boundaries(*lengths)
    expected = round_tensor(x, *lengths, symmetric=True)
    assert_same_bits(quantize_fixed(x, *lengths, symmetric=True), torch.where(expected == 0, 0.0, expected))
    assert expected.nan_to_num(0).min().item() == -expected.nan_to_num(0).max().item()


def _qtorch() -> Any:
    return pytest.importorskip("qtorch.quant")  # compiles an extension, once a machine


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [*LENGTHS[:7], (12, 20)], ids=str)
def test_qtorch_numerics_are_qtorchs_bits(lengths: tuple[int, int]) -> None:
    quant = _qtorch()
    just_above_half = torch.tensor([0.5 + 2.0**-24, -0.5 - 2.0**-24]) * 2.0 ** -lengths[1]
    odd = (2.0**23 + torch.arange(9) * 2 + 1) * 2.0 ** -lengths[1]
    bits = torch.randint(-(2**31), 2**31, (1_000_000,)).to(torch.int32).view(torch.float32)
    near = torch.randn(1_000_000) * 2.0 ** (lengths[0] - lengths[1] - 2)
    x = torch.cat([_boundaries(*lengths), just_above_half, odd, -odd, bits, near])
    for clamp, symmetric in ((True, False), (True, True), (False, False)):
        expected = quant.fixed_point_quantize(x, *lengths, clamp=clamp, symmetric=symmetric, rounding="nearest")
        rounded = quantize_fixed(
            x, *lengths, numerics="qtorch", overflow="saturate" if clamp else "unbounded", symmetric=symmetric
        )
        assert_same_bits(rounded, expected)


def test_measured_behaviour_of_qtorch() -> None:
    x = torch.tensor([0.5, 0.5 + 2.0**-24, 1.5, 2.5, -0.5, -0.3, -0.0, 2.0**23 + 1, torch.inf, torch.nan])
    rounded = quantize_fixed(x, 24, 0, numerics="qtorch", overflow="unbounded")
    expected = torch.tensor([0.0, 0.0, 2.0, 2.0, -0.0, -0.0, 0.0, 2.0**23 + 2, torch.inf, torch.nan])
    assert_same_bits(rounded, expected)
    assert quantize_fixed(x[1:2], 24, 0).item() == 1.0
    assert quantize_fixed(x[7:8], 24, 0, overflow="unbounded").item() == 2.0**23 + 1


@pytest.mark.parametrize("x", [0.2, -1.7, 3.9921875, 1e-3])
def test_stochastic_rounding_has_the_right_mean_and_is_a_function_of_the_seed(x: float) -> None:
    draws, step = 1_000_000, 2.0**-7
    lower = math.floor(abs(x) / step)
    up = abs(x) / step - lower
    rounded = quantize_fixed(torch.full((draws,), x, dtype=torch.float64), 11, 7, rounding="stochastic", seed=5)
    counts = rounded.abs() / step
    assert set(counts.unique().tolist()) <= {float(lower), float(lower + 1)}
    share = (counts == lower + 1).double().mean().item()
    assert abs(share - up) <= 4 * math.sqrt(up * (1 - up) / draws)
    assert (rounded.sign() * math.copysign(1, x) >= 0).all()
    again = quantize_fixed(torch.full((draws,), x, dtype=torch.float64), 11, 7, rounding="stochastic", seed=5)
    other = quantize_fixed(torch.full((draws,), x, dtype=torch.float64), 11, 7, rounding="stochastic", seed=6)
    assert torch.equal(again, rounded)
    assert up == 0 or not torch.equal(other, rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_pure_pytorch_gives_the_same_bits(dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (5000,)).to(torch.int32).view(torch.float32)
    x = torch.cat([bits, torch.randn(5003) * 10]).to(dtype)
    words = philox_uint32(torch.tensor(11), x.numel())
    for lengths, rounding, overflow in itertools.product(LENGTHS, (*ROUNDINGS, "stochastic"), OVERFLOWS):
        random = words if rounding == "stochastic" else None
        expected = reference.quantize_fixed(x, *lengths, rounding, overflow, False, random=random)  # type: ignore[arg-type]
        seed = 11 if rounding == "stochastic" else None
        assert_same_bits(
            quantize_fixed(x, *lengths, rounding=rounding, overflow=overflow, seed=seed),  # type: ignore[arg-type]
            expected,
        )
    for lengths, overflow in itertools.product(LENGTHS, ("saturate", "unbounded")):
        expected = reference.quantize_fixed(x, *lengths, "qtorch", overflow, False)  # type: ignore[arg-type]
        assert_same_bits(quantize_fixed(x, *lengths, overflow=overflow, numerics="qtorch"), expected)  # type: ignore[arg-type]


def test_saturated_values_get_no_gradient_if_configured() -> None:
    # 127.5 rounds to 128 and saturates; -128.5 rounds to -128, which is a number of the format
    x = torch.tensor([-129.0, -128.5, -128.0, 0.3, 127.4, 127.5, 1e9, torch.inf, torch.nan], requires_grad=True)
    grad = torch.arange(1.0, 10.0)
    quantize_fixed(x, 8, 0).backward(grad)
    assert torch.equal(x.grad, grad)  # type: ignore[arg-type]
    x.grad = None
    quantize_fixed(x, 8, 0, clip_gradients=True).backward(grad)
    assert torch.equal(x.grad, grad * torch.tensor([0, 1, 1, 1, 1, 0, 0, 0, 1.0]))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_gradients_mask_is_qtorchs() -> None:
    _qtorch()
    from qtorch.quant.quant_function import quant_cpu

    x = torch.cat([_boundaries(8, 3), torch.randn(10_000) * 12])
    expected, saturated = quant_cpu.fixed_point_quantize_nearest_mask(x, 8, 3, False)
    leaf = x.clone().requires_grad_()
    rounded = quantize_fixed(leaf, 8, 3, numerics="qtorch", clip_gradients=True)
    rounded.backward(torch.ones_like(x))
    assert_same_bits(rounded.detach(), expected)
    assert torch.equal(leaf.grad, 1.0 - saturated.float())  # type: ignore[arg-type]


@pytest.mark.parametrize("numerics", ["ieee", "qtorch"])
def test_in_place_equals_the_public_one(numerics: Any) -> None:
    code = 4 if numerics == "qtorch" else 0
    for x in (torch.randn(1027) * 3, torch.randn(33, 65).t(), torch.empty(0, 3)):
        expected = ops.quantize_fixed(x, 8, 4, numerics=numerics)
        arguments = (x.clone(), [8, 4, 0, 0, code], None)
        torch.library.opcheck(torch.ops.vitfast.quantize_fixed_.default, arguments)
        in_place = x.clone(memory_format=torch.preserve_format)
        torch.ops.vitfast.quantize_fixed_(in_place, *arguments[1:])
        assert_same_bits(in_place, expected)
        assert in_place.stride() == x.stride()


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"numerics": "qtorch", "rounding": "stochastic"}, "numerics"),
        ({"numerics": "qtorch", "overflow": "wrap"}, "overflow"),
        ({"symmetric": True, "overflow": "wrap"}, "symmetric"),
        ({"clip_gradients": True, "overflow": "unbounded"}, "clip_gradients"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        quantize_fixed(torch.zeros(1), 8, 4, **options)
