"""The simulation of int8 equals integer arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitfast import Int8Config, QATConfig, calibrate, quantize_
from vitfast.quantization.int8_arithmetic import quantize_weight, weight_scale


def _integers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a weight on its own: float64, one channel after the other."""
    scales, rows = [], []
    for row in weight.detach():
        scale = row.abs().max() / 127
        scales.append(scale)
        rows.append((row / scale).double().round().to(torch.int32))
    return torch.stack(rows), torch.stack(scales)


@pytest.mark.parametrize("in_features", [7, 512, 513, 3072])
@pytest.mark.parametrize("step", ["prepare", "convert"])
def test_dynamic_is_integer_arithmetic(in_features: int, step: str) -> None:
    model = nn.Sequential(nn.Linear(in_features, 11))
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach()
    x = torch.randn(4, 3, in_features) * torch.tensor([1e-3, 1.0, 1e3])[:, None]
    x[0, 0] = 0.0
    x[1] = 1 + torch.rand(3, in_features)  # long sums of one sign: beyond 2**24 with 3072 channels
    weight[0] = 0.5
    with torch.no_grad():
        model[0].weight.copy_(weight)
    quantize_(model, QATConfig(Int8Config()))
    if step == "convert":
        quantize_(model, QATConfig(step="convert"))

    x_scale = x.abs().amax(-1, keepdim=True) / 127
    x_scale[x_scale == 0] = 1.0
    x_int = (x / x_scale).round().to(torch.int32)
    weight_int, scale = _integers(weight)
    accumulator = (x_int.long() @ weight_int.t().long()).to(torch.int32)
    expected = accumulator.float() * (x_scale * scale) + bias
    assert torch.equal(model(x), expected)


def test_calibrated_is_integer_arithmetic() -> None:
    model = nn.Sequential(nn.Linear(700, 5))
    weight_int, scale = _integers(model[0].weight)
    x = torch.rand(6, 700) * 3 - 0.5
    quantize_(model, QATConfig(Int8Config("calibrated")))
    assert calibrate(model, [(x[:3], None), (x[3:], None), (x * 100, None)], batches=2) == 1
    lowest, highest = x.min(), x.max()
    x_scale = (highest - lowest) / 255
    zero_point = -(lowest / x_scale).round()
    wide = torch.cat([x, x * 2, torch.zeros(1, 700)])  # what is beyond the range saturates, 0 is exact
    x_int = (wide / x_scale + zero_point).round().clamp(0, 255).long() - zero_point.long()
    accumulator = (x_int @ weight_int.t().long()).to(torch.int32)
    expected = accumulator.float() * (x_scale * scale) + model[0].bias
    assert torch.equal(model(wide), expected)
    assert torch.equal(model(wide)[-1], model[0].bias)


@pytest.mark.parametrize("in_channels", [3, 64])
def test_a_convolution_has_a_scale_for_each_image(in_channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(in_channels, 8, 3, stride=2, padding=1))
    weight_int, scale = _integers(model[0].weight)
    x = torch.randn(3, in_channels, 9, 9) * torch.tensor([0.1, 1.0, 10.0])[:, None, None, None]
    quantize_(model, Int8Config())
    x_scale = x.abs().amax((1, 2, 3), keepdim=True) / 127
    accumulator = nn.functional.conv2d((x / x_scale).round().double(), weight_int.double(), stride=2, padding=1)
    expected = accumulator.float() * (x_scale * scale[:, None, None]) + model[0].bias[:, None, None]
    assert torch.equal(model(x), expected)


def test_weights_use_the_whole_range_and_zeros_stay() -> None:
    weight = torch.randn(4, 9)
    weight[2] = 0.0
    scale = weight_scale(weight)
    integers = quantize_weight(weight, scale)
    assert integers.abs().amax(1).tolist() == [127, 127, 0, 127]
    assert scale[2] == 1.0


def test_gradients_are_those_of_the_rounded_operands() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    x = torch.randn(5, 6, requires_grad=True)
    weight_int, scale = _integers(model[0].weight)
    quantize_(model, QATConfig(Int8Config()))
    grad = torch.randn(5, 4)
    model(x).backward(grad)
    x_scale = x.detach().abs().amax(-1, keepdim=True) / 127
    rounded_x = (x.detach() / x_scale).round() * x_scale
    torch.testing.assert_close(x.grad, grad @ (weight_int * scale[:, None]))
    torch.testing.assert_close(model[0].weight.grad, grad.t() @ rounded_x)
