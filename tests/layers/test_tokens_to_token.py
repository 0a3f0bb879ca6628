"""The tokens-to-token module against its equations, and under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from support import t2t_equations
from vitfast.layers import TokensToToken
from vitfast.layers.token_performer import TokenPerformer
from vitfast.layers.tokens_to_token import SoftSplit, TokenTransformer, tokens_to_token_grid_size

TYPES = ["performer", "transformer"]


def randomized(module: nn.Module) -> Any:
    """Random parameters, none of them zero or one, except the random features, which stay what they are."""
    for name, parameter in module.named_parameters():
        if not name.endswith(".w") and name != "w":
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.1)
    return module


@pytest.mark.parametrize(
    ("layer_class", "equations"),
    [(TokenPerformer, t2t_equations.token_performer), (TokenTransformer, t2t_equations.token_transformer)],
)
def test_a_layer_and_its_gradients(layer_class: type[nn.Module], equations: Any) -> None:
    layer = randomized(layer_class(27, 16, layer_norm_eps=1e-2)).double().eval()
    x = torch.randn(2, 12, 27, dtype=torch.float64, requires_grad=True)
    state = dict(layer.named_parameters())
    out, expected = layer(x), equations({f"layer.{key}": value for key, value in state.items()}, "layer", x, 1e-2)
    torch.testing.assert_close(out, expected)
    inputs = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    weights = torch.randn_like(out)
    gradients, references = (torch.autograd.grad((y * weights).sum(), inputs) for y in (out, expected))
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("tokens_type", TYPES)
@pytest.mark.parametrize("split", [(7, 4, 2), (11, 6, 5), (5, 3, 0)])
def test_the_whole_module(tokens_type: Any, split: tuple[int, int, int]) -> None:
    module = TokensToToken(*split, 3, 20, token_dim=16, tokens_type=tokens_type, layer_norm_eps=1e-3)
    randomized(module).double().eval()
    images = torch.randn(2, 3, 42, 42, dtype=torch.float64)
    expected = t2t_equations.tokens_to_token(
        {f"t2t.{key}": value for key, value in module.state_dict().items()}, "t2t", images, split, 1e-3
    )
    torch.testing.assert_close(module(images), expected)
    assert expected.shape[1] == tokens_to_token_grid_size(42, *split) ** 2


@pytest.mark.parametrize(("split", "grid"), [((14, 8, 3), 7), ((11, 6, 5), 10), ((7, 4, 2), 14)])
def test_grids_of_the_published_splits(split: tuple[int, int, int], grid: int) -> None:
    assert tokens_to_token_grid_size(224, *split) == grid


def test_grid_of_an_image_that_is_too_small() -> None:
    assert tokens_to_token_grid_size(3, 7, 4, 2) == 1
    assert tokens_to_token_grid_size(2, 7, 4, 2) == 0


def test_features_are_fixed_orthogonal_and_saved() -> None:
    layer = TokenPerformer(27, 16)
    assert not layer.w.requires_grad
    assert "w" in layer.state_dict()
    torch.testing.assert_close(layer.w @ layer.w.T, 8 * torch.eye(8), atol=1e-5, rtol=0)


def test_dropout_acts_in_training_on_performers_only() -> None:
    images = torch.randn(1, 3, 28, 28)
    for tokens_type, drop_rate, changes in (
        ("performer", 0.5, True),
        ("performer", 0.0, False),
        ("transformer", 0.5, False),
    ):
        module = TokensToToken(7, 4, 2, 3, 8, token_dim=8, tokens_type=tokens_type, drop_rate=drop_rate).train()
        assert torch.equal(module(images), module(images)) != changes
        assert torch.equal(module.eval()(images), module(images))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens_type", TYPES)
def test_autocast(tokens_type: Any, low: torch.dtype) -> None:
    module = randomized(TokensToToken(7, 4, 2, 3, 20, token_dim=16, tokens_type=tokens_type)).eval()
    images = torch.randn(2, 3, 28, 28)
    expected = module(images)
    with torch.autocast("cpu", low):
        out = module(images)
    assert out.dtype == low
    assert (out - expected).norm() < 8 * torch.finfo(low).eps * expected.norm()
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(("patch_size", "stride", "padding"), [(3, 2, 1), (5, 3, 2), (4, 4, 0), (3, 1, 0)])
def test_every_patch_is_flattened_by_channel_row_and_column(patch_size: int, stride: int, padding: int) -> None:
    split, images = SoftSplit(patch_size, stride, padding), torch.randn(2, 3, 9, 9)
    padded = torch.zeros(2, 3, 9 + 2 * padding, 9 + 2 * padding)
    padded[:, :, padding : padding + 9, padding : padding + 9] = images
    starts = range(0, 9 + 2 * padding - patch_size + 1, stride)
    expected = [padded[:, :, y : y + patch_size, x : x + patch_size].flatten(1) for y in starts for x in starts]
    assert torch.equal(split(images), torch.stack(expected, dim=1))
