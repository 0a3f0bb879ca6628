"""The convolutional stem: shapes and layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitfast.layers import ConvStem


@pytest.mark.parametrize(("stride", "channels"), [(4, [6, 12, 24]), (8, [6, 12, 24, 24]), (16, [6, 12, 24, 24, 24])])
def test_channels_double_and_every_convolution_but_the_first_halves_the_grid(stride: int, channels: list[int]) -> None:
    stem = ConvStem(stride, 3, 24).eval()
    convolutions = [module for module in stem if isinstance(module, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [*channels, 24]
    assert [layer.stride[0] for layer in convolutions] == [1, *[2] * (len(channels) - 1), 1]
    assert stem(torch.randn(2, 3, 2 * stride, 2 * stride)).shape == (2, 4, 24)


def test_tokens_are_the_grid_row_by_row() -> None:
    stem = ConvStem(4, 1, 8).double().eval()
    for module in stem:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = images = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    for index in (0, 3, 6):
        norm = stem[index + 1]
        x = F.conv2d(x, stem[index].weight, stride=2 if index else 1, padding=1)
        x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    x = F.conv2d(x, stem[9].weight, stem[9].bias)
    tokens = stem(images)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(tokens[:, 3 * row + column], x[:, :, row, column])
