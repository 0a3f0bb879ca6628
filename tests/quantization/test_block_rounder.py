"""Microscaling formats against the specification's rule, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import vitfast
from support.float_oracle import round_float
from vitfast.errors import UserError
from vitfast.formats import FloatFormat
from vitfast.quantization.block_rounder import BlockRounder
from vitfast.quantization.named_configs import format_name, named_config

FORMATS = {
    "fp4_e2m1": FloatFormat.fp4_e2m1(),
    "fp6_e3m2": FloatFormat.fp6_e3m2(),
    "fp8_e4m3fn": FloatFormat.fp8_e4m3fn(),
    "fp8_e5m2": FloatFormat.fp8_e5m2(),
}


def round_block(block: list[float], format: FloatFormat) -> list[float]:
    """The rule, in Python's numbers: a power of two for the block, then the nearest number, ties to even."""
    largest = max(abs(x) for x in block)
    if not math.isfinite(largest) or any(math.isnan(x) for x in block):
        return [math.nan] * len(block)
    if largest == 0:
        return list(block)
    shift = math.floor(math.log2(largest)) - math.floor(math.log2(format.max_value))
    scale = 2.0 ** max(shift, -127)
    return [round_float(x / scale, format, "nearest_even", "saturate") * scale for x in block]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("block", [4, 32])
def test_it_is_the_rule(name: str, block: int) -> None:
    x = torch.randn(7, 45) * torch.logspace(-30, 30, 7, 2.0)[:, None]
    x[2, :8] = 0.0
    x[3] = (torch.randint(-12, 12, (45,)) / 8).float()  # ties
    actual = BlockRounder(FORMATS[name], block)(x)
    expected = [
        [value for part in row.split(block) for value in round_block(part.tolist(), FORMATS[name])] for row in x
    ]
    assert torch.equal(actual, torch.tensor(expected))


def test_a_block_that_is_not_finite_becomes_nan_and_no_other() -> None:
    x = torch.randn(2, 64)
    x[0, 3], x[1, 40] = torch.nan, -torch.inf
    rounded = BlockRounder(FloatFormat.fp4_e2m1())(x)
    spoiled = torch.zeros(2, 64, dtype=torch.bool)
    spoiled[0, :32] = spoiled[1, 32:] = True
    assert torch.equal(rounded.isnan(), spoiled)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (32,), (2, 3, 33), (4, 3, 5, 7)])
def test_any_shape_and_twice_is_once(shape: tuple[int, ...]) -> None:
    round_ = BlockRounder(FloatFormat.fp6_e2m3())
    once = round_(torch.randn(shape))
    assert once.shape == shape
    assert torch.equal(round_(once), once)


def test_gradients_pass_straight_through() -> None:
    x = torch.randn(5, 40, requires_grad=True)
    grad = torch.randn(5, 40)
    BlockRounder(FloatFormat.fp4_e2m1())(x).backward(grad)
    assert torch.equal(x.grad, grad)


def test_small_weights_survive_four_bits() -> None:
    layer = nn.Sequential(nn.Linear(64, 16, bias=False))
    with torch.no_grad():
        layer[0].weight.mul_(1e-3)
    x = torch.randn(10, 64)
    expected = layer(x)
    vitfast.quantize_(layer, named_config("MXFP4"))
    error = (layer(x) - expected).norm() / expected.norm()
    assert 0.01 < error < 0.4  # without scales all weights would be zero


def test_names_and_wrong_blocks() -> None:
    assert format_name(named_config("mxfp6_e3m2")) == "MXFP6_E3M2"
    assert format_name(named_config("FP6_E3M2")) == "FP6_E3M2"
    assert format_name(vitfast.FloatConfig("fp8_e5m2", block=16)) == "FLOAT_5_2, blocks of 16"
    with pytest.raises(UserError, match="block must be a positive integer"):
        vitfast.FloatConfig("fp4_e2m1", block=0)
    with pytest.raises(UserError, match="block requires numerics='ieee'"):
        vitfast.FloatConfig("fp4_e2m1", block=32, numerics="qtorch")


def test_a_converted_model_is_stored_in_16_bits(tmp_path) -> None:
    model = vitfast.create_model("vit_nano_patch4_16")
    vitfast.quantize_(model, named_config("MXFP4"))
    images = torch.randn(2, 1, 16, 16)
    vitfast.save_quantized(model, tmp_path / "small.safetensors")
    loaded = vitfast.load_quantized(tmp_path / "small.safetensors")
    assert torch.equal(loaded.eval()(images), model.eval()(images))
    weights: Tensor = sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "small.safetensors").stat().st_size < 2.6 * weights
