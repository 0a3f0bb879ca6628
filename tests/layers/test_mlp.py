"""The MLP agrees with torch's operators in float64, in every combination of its options."""

import pytest
import torch
from torch.nn import functional as F

from vitfast.layers import GatedMlp, Mlp


@pytest.mark.parametrize(("gelu", "approximate"), [("erf", "none"), ("tanh", "tanh")])
@pytest.mark.parametrize("with_residual", [False, True])
def test_forward(gelu: str, approximate: str, with_residual: bool) -> None:
    layer = Mlp(8, 24, gelu=gelu).double()
    x, residual = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    expected = layer.fc2(F.gelu(layer.fc1(x), approximate=approximate))
    if with_residual:
        torch.testing.assert_close(layer(x, residual), expected + residual)
    else:
        torch.testing.assert_close(layer(x), expected)


def test_dropout_acts_in_training_only_and_spares_the_residual() -> None:
    layer = Mlp(8, 24, drop_rate=0.9999)
    x, residual = torch.randn(2, 1, 5, 8)
    layer.train()
    torch.testing.assert_close(layer(x, residual), residual)
    layer.eval()
    assert torch.equal(layer(x, residual), layer(x, residual))
    assert not torch.allclose(layer(x, residual), residual)


def test_dropout_acts_after_both_layers() -> None:
    layer = Mlp(64, 64, drop_rate=0.5).train()
    torch.nn.init.zeros_(layer.fc2.weight)
    torch.nn.init.ones_(layer.fc2.bias)
    assert set(layer(torch.randn(1, 5, 64)).unique().tolist()) == {0.0, 2.0}
    hidden = []
    layer.fc2.register_forward_hook(lambda module, inputs, output: hidden.append(inputs[0]))
    layer(torch.randn(1, 5, 64))
    assert 0.3 < (hidden[0] == 0).float().mean() < 0.7


def test_another_width_comes_out() -> None:
    layer, x = Mlp(16, 24, out_dim=8), torch.randn(2, 5, 16)
    expected = layer.fc2(F.gelu(layer.fc1(x)))
    residual = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x, residual=residual), expected + residual)


def test_quick_gelu_is_clips() -> None:
    layer, (x, residual) = Mlp(8, 24, gelu="quick").double(), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    hidden = layer.fc1(x)
    torch.testing.assert_close(layer(x, residual), layer.fc2(hidden * torch.sigmoid(1.702 * hidden)) + residual)


def test_gated_mlp_drops_in_training_only_and_spares_the_residual() -> None:
    layer = GatedMlp(8, 24, drop_rate=0.9999)
    x, residual = torch.randn(2, 1, 5, 8)
    torch.testing.assert_close(layer.train()(x, residual), residual)
    gate, hidden = layer.fc1(x)[..., :12], layer.fc1(x)[..., 12:]
    torch.testing.assert_close(layer.eval()(x, residual), layer.fc2(F.silu(gate) * hidden) + residual)
