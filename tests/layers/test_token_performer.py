"""The performer's attention agrees with the published formula and neither underflows nor overflows."""

import pytest
import torch
from torch import Tensor

from support import t2t_equations
from vitfast.layers.token_performer import performer_attention

LOW = [torch.float16, torch.bfloat16]


def random_inputs(scale: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k and v of 2 x 40 tokens with 64 channels, and 32 features, orthogonal as T2T-ViT's."""
    projection = torch.nn.init.orthogonal_(torch.empty(32, 64), gain=32**0.5)
    q, k = (torch.randn(2, 40, 64) * scale for _ in range(2))
    return tuple(tensor.to(dtype) for tensor in (q, k, torch.randn(2, 40, 64), projection))


# |x|² / 2 is about 32 scale²: from denominators beside which epsilon is nothing to those that are nothing beside it
@pytest.mark.parametrize("scale", [0.1, 0.5, 0.7, 0.8, 0.9, 1.2])
def test_result_and_gradients_are_those_of_the_published_formula(scale: float) -> None:
    inputs = [tensor.requires_grad_() for tensor in random_inputs(scale)]
    out, expected = performer_attention(*inputs), t2t_equations.performer_attention(*inputs)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    gradients, expected_gradients = (torch.autograd.grad((y * weights).sum(), inputs) for y in (out, expected))
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_epsilon_matters_at_these_sizes() -> None:
    """Guards the test above: between its smallest and largest scale epsilon goes from nothing to everything."""
    without = [
        performer_attention(*inputs, epsilon=1e-30).norm() / performer_attention(*inputs).norm()
        for inputs in (random_inputs(0.1), random_inputs(0.8), random_inputs(1.2))
    ]
    assert without[0] == pytest.approx(1.0, abs=1e-6)
    assert 1.01 < without[1] < 100
    assert without[2] > 1e6


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("scale", [0.3, 0.8])
def test_autocast_changes_nothing(low: torch.dtype, scale: float) -> None:
    inputs = random_inputs(scale, torch.float32)
    with torch.autocast("cpu", low):
        out = performer_attention(*inputs)
    assert torch.equal(out, performer_attention(*inputs))


def test_float16_autocast_where_the_published_formula_gives_nan() -> None:
    q, k, v, projection = (tensor.requires_grad_() for tensor in random_inputs(0.8, torch.float32))
    with torch.autocast("cpu", torch.float16):
        original = t2t_equations.performer_attention(q.half(), k.half(), v.half(), projection)
        out = performer_attention(q.half(), k.half(), v.half(), projection)
    assert original.isnan().any()
    assert out.dtype == torch.float16
    exact = t2t_equations.performer_attention(*(x.half().double() for x in (q, k, v)), projection.double())
    torch.testing.assert_close(out.double(), exact, rtol=2e-3, atol=1e-6)
    for gradient in torch.autograd.grad(out.float().sum(), (q, k, v)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0, 100.0, 1e4])
def test_finite_for_the_range_of_the_dtype(low: torch.dtype, scale: float) -> None:
    """Features from exp(0) to exp(-1e9), and rows of zeros among them."""
    q, k, v, projection = random_inputs(1.0, torch.float32)
    q, k = ((x * scale).to(low) for x in (q, k))
    q[:, ::3], k[:, 1::3] = 0, 0
    leaves = [x.requires_grad_() for x in (q, k, v.to(low))]
    with torch.autocast("cpu", low):
        out = performer_attention(*leaves, projection)
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out.float().square().sum(), leaves):
        assert gradient.isfinite().all()
