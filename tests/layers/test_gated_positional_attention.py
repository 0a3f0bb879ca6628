"""Gated positional attention against its formula, written out with the division by the row sums."""

import math

import pytest
import torch
from torch import Tensor, nn

from vitfast.layers import GatedPositionalAttention
from vitfast.layers.positional_attention import positional_map, positional_probabilities


def _layer(dim: int = 48, num_heads: int = 6, **options: float) -> GatedPositionalAttention:
    layer = GatedPositionalAttention(dim, num_heads, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def _position(layer: GatedPositionalAttention, grid: int) -> Tensor:
    return positional_map(positional_probabilities(layer.pos_proj.weight, layer.pos_proj.bias, grid))


def _attention(layer: GatedPositionalAttention, x: Tensor) -> Tensor:
    """The blend of both attentions, [B, H, N, N]."""
    heads = layer.num_heads
    q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in layer.qk(x).chunk(2, dim=-1))
    content = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    gate = torch.sigmoid(layer.gating_param).view(1, -1, 1, 1)
    attention = (1 - gate) * content + gate * _position(layer, math.isqrt(x.shape[1]))
    return attention / attention.sum(-1, keepdim=True)


def _reference(layer: GatedPositionalAttention, x: Tensor) -> Tensor:
    v = layer.v(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    return layer.proj((_attention(layer, x) @ v).transpose(1, 2).flatten(-2))


# 48 channels: a head dimension of 8 with kernels, of 3 without
@pytest.mark.parametrize("num_heads", [6, 16])
@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"locality_dim": 10}])
def test_formula_and_gradients(num_heads: int, options: dict[str, float]) -> None:
    layer = _layer(num_heads=num_heads, **options)
    x = torch.randn(3, 25, 48, dtype=torch.float64, requires_grad=True)
    out, expected = layer(x), _reference(layer, x)
    torch.testing.assert_close(out, expected)
    inputs, weights = [x, *layer.parameters()], torch.randn_like(out)
    actual = torch.autograd.grad((out * weights).sum(), inputs)
    for gradient, reference in zip(actual, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, reference)


def test_one_operator_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose kernel is active, without gradients."""
    monkeypatch.setattr(GatedPositionalAttention, "_has_kernel", lambda *_: True)
    for num_heads, options in ((6, {}), (6, {"qkv_bias": True, "locality_dim": 10}), (16, {})):
        layer = _layer(num_heads=num_heads, **options).eval()
        x = torch.randn(3, 25, 48, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), _reference(layer, x))
            half = layer.bfloat16()(x.bfloat16())
            assert half.dtype == torch.bfloat16
            expected = _reference(layer.double(), x.bfloat16().double())
        assert (half.double() - expected).norm() < 0.02 * expected.norm()


def test_any_grid_and_an_empty_batch() -> None:
    layer = _layer()
    for tokens in (1, 4, 36):
        x = torch.randn(2, tokens, 48, dtype=torch.float64)
        torch.testing.assert_close(layer(x), _reference(layer, x))
    assert layer(torch.randn(0, 4, 48, dtype=torch.float64)).shape == (0, 4, 48)


def test_no_square_grid() -> None:
    with pytest.raises(ValueError, match=r"square grid of patches, \[B, G \* G, C\], got shape \[1, 5, 48\]"):
        _layer()(torch.randn(1, 5, 48, dtype=torch.float64))


def test_dropping_acts_in_training_only() -> None:
    for rates in ({"drop_rate": 0.5}, {"attention_drop_rate": 0.5}):
        layer, x = _layer(**rates), torch.randn(2, 4, 48, dtype=torch.float64)
        assert not torch.equal(layer.train()(x), layer(x))
        torch.testing.assert_close(layer.eval()(x), _reference(layer, x))


def test_attention_dropout_draws_one_mask_for_the_blend() -> None:
    """Each output is a sum of whole attention weights, doubled where they are kept."""
    layer = _layer(dim=4, num_heads=1, attention_drop_rate=0.5).train()
    nn.init.eye_(layer.v.weight)
    nn.init.eye_(layer.proj.weight)
    nn.init.zeros_(layer.proj.bias)
    x = torch.eye(4, dtype=torch.float64)[None]  # with values that are unit vectors the output is the attention itself
    attention = _attention(layer, x)[0, 0]
    kept = layer(x)[0] / attention
    assert {round(value, 9) for value in kept.flatten().tolist()} == {0.0, 2.0}


@pytest.mark.parametrize(
    ("num_heads", "peak", "patches"),
    [(9, 0.318, 1), (4, 0.193, 4), (16, 0.193, 4), (1, 0.318, 1)],
)
def test_local_initialization(num_heads: int, peak: float, patches: int) -> None:
    """Each head of a central patch looks at its own offset; between patches, four share the maximum."""
    layer = GatedPositionalAttention(num_heads * 8, num_heads)
    nn.init.zeros_(layer.pos_proj.bias)
    layer.initialize_locality(1.0)
    assert torch.equal(layer.v.weight, torch.eye(num_heads * 8))
    grid, size = 11, math.isqrt(num_heads)
    probabilities = _position(layer, grid)[:, grid * grid // 2].view(num_heads, grid, grid)
    axis = torch.arange(grid) - grid // 2
    centers = set()
    for head in probabilities:
        assert head.max().item() == pytest.approx(peak, abs=5e-4)
        assert (head > head.max() - 1e-4).sum() == patches
        centers.add((round((head.sum(1) @ axis.float()).item(), 3), round((head.sum(0) @ axis.float()).item(), 3)))
    offsets = [index - (size - 1) / 2 for index in range(size)]
    assert centers == {(y, x) for y in offsets for x in offsets}


def test_heads_are_numbered_column_by_column() -> None:
    """The original's order: y is the remainder of the head's number, x the quotient."""
    layer = GatedPositionalAttention(36, 9)
    layer.initialize_locality(3.0)
    expected = [[2.0 * (head // 3 - 1), 2.0 * (head % 3 - 1), -1.0] for head in range(9)]
    assert torch.equal(layer.pos_proj.weight, 3.0 * torch.tensor(expected))


def test_local_initialization_leaves_surplus_heads_random() -> None:
    layer = GatedPositionalAttention(24, 6)
    before = layer.pos_proj.weight.detach().clone()
    layer.initialize_locality(1.0)
    assert torch.equal(layer.pos_proj.weight[4:], before[4:])
    assert torch.equal(layer.pos_proj.weight[:4, 2], torch.full((4,), -1.0))


def test_repeated_features_begin_as_the_same_function() -> None:
    positions = []
    for locality_dim in (1, 10):
        layer = GatedPositionalAttention(36, 9, locality_dim=locality_dim)
        nn.init.zeros_(layer.pos_proj.bias)
        layer.initialize_locality(1.0)
        positions.append(_position(layer, 5))
    torch.testing.assert_close(positions[0], positions[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention_drop_rate", [0.0, 1e-9])
def test_half_precision(dtype: torch.dtype, attention_drop_rate: float) -> None:
    """By autocast and by conversion; a rate of next to nothing takes the way of dropout without dropping."""
    layer = _layer(attention_drop_rate=attention_drop_rate).train()
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    expected = _reference(layer, x)
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", dtype=dtype):
        by_autocast = layer(x)
    by_conversion = layer.to(dtype)(x.to(dtype))
    for out in (by_autocast, by_conversion):
        assert out.dtype == dtype
        assert (out.double() - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_hooks_on_the_projections_are_called(qkv_bias: bool) -> None:
    """Without them one product takes the place of both layers."""
    layer, x = _layer(qkv_bias=qkv_bias), torch.randn(2, 9, 48, dtype=torch.float64)
    expected = layer(x)
    called = []
    handle = layer.v.register_forward_hook(lambda *_: called.append("v"))
    torch.testing.assert_close(layer(x), expected)
    handle.remove()
    layer.qk.register_forward_hook(lambda _, __, out: called.append("qk") or 2 * out)
    assert not torch.allclose(layer(x), expected)
    assert called == ["v", "qk"]
