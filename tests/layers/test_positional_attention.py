"""The factored form (one factor per axis) against the definition on all pairs of patches."""

import pytest
import torch
from torch import Tensor

from vitfast.layers.positional_attention import attend_by_position, positional_map, positional_probabilities

HEADS, HEAD_DIM = 5, 3


def _parameters(locality_dim: int = 1) -> tuple[Tensor, Tensor]:
    weight = torch.randn(HEADS, 3 * locality_dim, dtype=torch.float64, requires_grad=True)
    return weight, torch.randn(HEADS, dtype=torch.float64, requires_grad=True)


def _definition(weight: Tensor, bias: Tensor, grid: int) -> Tensor:
    """[H, N, N]: a linear layer on the features of each pair, each feature repeated, and a softmax."""
    repeats = weight.shape[1] // 3
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    dx = x.flatten()[None, :] - x.flatten()[:, None]
    dy = y.flatten()[None, :] - y.flatten()[:, None]
    features = torch.stack([dx] * repeats + [dy] * repeats + [dx**2 + dy**2] * repeats, dim=-1).to(weight)
    scores = (features @ weight.t() + bias) / repeats  # [N, N, H]
    return scores.permute(2, 0, 1).softmax(-1)


@pytest.mark.parametrize("grid", [1, 2, 5])
@pytest.mark.parametrize("locality_dim", [1, 10])
def test_map_is_the_definition(grid: int, locality_dim: int) -> None:
    weight, bias = _parameters(locality_dim)
    actual = positional_map(positional_probabilities(weight, bias, grid))
    torch.testing.assert_close(actual, _definition(weight, bias, grid))


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("locality_dim", [1, 10])
def test_product_with_values(batch: int, locality_dim: int) -> None:
    """Forward, and the gradients of weight, bias and values."""
    weight, bias = _parameters(locality_dim)
    v = torch.randn(batch, 16, HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    actual = attend_by_position(positional_probabilities(weight, bias, 4), v).flatten(1, 2)
    expected = torch.einsum("hij,bjhd->bihd", _definition(weight, bias, 4), v)
    torch.testing.assert_close(actual, expected)
    inputs, weights = (weight, bias, v), torch.randn_like(expected)
    gradients = torch.autograd.grad((actual * weights).sum(), inputs)
    for gradient, reference in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, reference)


def test_scores_of_half_precision_weights_are_precise() -> None:
    """On 24 x 24 patches a score in bfloat16 would be off by 2."""
    weight, bias = (parameter.detach().to(torch.bfloat16) for parameter in _parameters())
    probabilities = positional_probabilities(weight, bias, 24)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(
        positional_map(probabilities).double(), _definition(weight.double(), bias.double(), 24), rtol=1e-3, atol=1e-6
    )
