"""LayerNorm agrees with torch's in float64, alone and with the addition."""

import torch
from torch.nn import functional as F

from vitfast.layers import LayerNorm, ResidualAdd


def _layer() -> LayerNorm:
    layer = LayerNorm(24, eps=1e-3).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def test_forward() -> None:
    layer, x = _layer(), torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.layer_norm(x, (24,), layer.weight, layer.bias, 1e-3))


def test_add_returns_the_sum_and_its_normalization() -> None:
    layer = _layer()
    x, residual = torch.randn(2, 2, 5, 24, dtype=torch.float64)
    summed, normalized = ResidualAdd().add_and_normalize(residual, x, layer)
    torch.testing.assert_close(summed, x + residual)
    torch.testing.assert_close(normalized, F.layer_norm(x + residual, (24,), layer.weight, layer.bias, 1e-3))


def test_default_epsilon_is_timms() -> None:
    assert LayerNorm(8).eps == 1e-6
