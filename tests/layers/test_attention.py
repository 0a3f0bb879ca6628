"""Attention agrees with torch's own in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitfast.layers import Attention


def _reference(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """The functional multi-head attention of torch, which keeps tokens first."""
    tokens_first = x.transpose(0, 1)
    out, _ = F.multi_head_attention_forward(
        *(tokens_first, tokens_first, tokens_first),
        embed_dim_to_check=x.shape[-1],
        num_heads=layer.num_heads,
        in_proj_weight=layer.qkv.weight,
        in_proj_bias=layer.qkv.bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=layer.proj.weight,
        out_proj_bias=layer.proj.bias,
        training=False,
        need_weights=False,
    )
    return out.transpose(0, 1)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_forward_and_gradients(qkv_bias: bool) -> None:
    layer = Attention(32, 4, qkv_bias=qkv_bias).double()
    x = torch.randn(2, 5, 32, dtype=torch.float64, requires_grad=True)
    out, expected = layer(x), _reference(layer, x)
    torch.testing.assert_close(out, expected)
    inputs = [x, *layer.parameters()]
    weights = torch.randn_like(out)
    actual = torch.autograd.grad((out * weights).sum(), inputs)
    for gradient, reference in zip(actual, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, reference)


def test_without_bias_has_no_bias_parameter() -> None:
    assert set(dict(Attention(16, 2, qkv_bias=False).named_parameters())) == {"qkv.weight", "proj.weight", "proj.bias"}


@pytest.mark.parametrize("rates", [{"drop_rate": 0.5}, {"attention_drop_rate": 0.5}])
def test_dropout_acts_in_training_only(rates: dict[str, float]) -> None:
    layer, x = Attention(16, 2, **rates), torch.randn(1, 6, 16)
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_attention_dropout_acts_on_probabilities() -> None:
    """With values all ones, the output stays the same but for what the dropped probabilities take away."""
    layer = Attention(8, 1, attention_drop_rate=0.5).train()
    nn.init.zeros_(layer.qkv.weight)
    nn.init.ones_(layer.qkv.bias)
    nn.init.eye_(layer.proj.weight)
    nn.init.zeros_(layer.proj.bias)
    out = layer(torch.randn(1, 10, 8))
    kept = out * 10 / 2  # ten probabilities of 1/10, doubled where kept
    torch.testing.assert_close(kept, kept.round())
    assert len(kept.unique()) > 1
