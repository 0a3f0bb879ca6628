"""The ResNet of hybrids against its equations, written out in float64, in the three published conventions."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.layers import HybridEmbed, ResNet, ResNetConventions, StdConv2d
from vitfast.layers.resnet import ResNetStem, resnet_channels, resnet_grid_size

GOOGLE = ResNetConventions()
TIMM = ResNetConventions(weight_eps=1e-8, weight_eps_place="variance", group_norm_eps=1e-5)
JEONSWORLD = ResNetConventions(padding="symmetric", weight_eps_place="variance", projection_norm="channel")
CONVENTIONS = {"google": GOOGLE, "timm": TIMM, "jeonsworld": JEONSWORLD}
WIDTH = 32


def randomize(module: nn.Module) -> Any:
    """Draws everything; kernels are small, so that the epsilons count."""
    for name, parameter in module.named_parameters():
        scale, mean = (1e-3, 1e-3) if parameter.dim() == 4 else (0.3, float(name.endswith("weight")))
        nn.init.normal_(parameter, mean=mean, std=scale)
    return module.double().eval()


# --- the equations ----------------------------------------------------------------------------------------------------


def windows(x: Tensor, size: int, stride: int, conventions: ResNetConventions, pad_value: float) -> Tensor:
    """All windows of ``x`` ``[B, C, h, w]``: ``[B, C, rows, columns, size, size]``."""
    height = x.shape[-1]
    if conventions.padding == "same":
        total = max((-(-height // stride) - 1) * stride + size - height, 0)
        before, after = total // 2, total - total // 2
    else:
        before = after = 0 if pad_value else (size - 1) // 2
    padded = x.new_full((*x.shape[:2], height + before + after, height + before + after), pad_value)
    padded[:, :, before : before + height, before : before + height] = x
    return padded.unfold(2, size, stride).unfold(3, size, stride)


def convolve(x: Tensor, kernel: Tensor, stride: int, conventions: ResNetConventions) -> Tensor:
    flat = kernel.flatten(1)
    mean = flat.sum(1, keepdim=True) / flat.shape[1]
    variance = ((flat - mean) ** 2).sum(1, keepdim=True) / flat.shape[1]
    if conventions.weight_eps_place == "deviation":
        flat = (flat - mean) / (variance**0.5 + conventions.weight_eps)
    else:
        flat = (flat - mean) / (variance + conventions.weight_eps) ** 0.5
    size = kernel.shape[-1]
    return torch.einsum("bcrsij,ocij->bors", windows(x, size, stride, conventions, 0.0), flat.view(kernel.shape))


def group_norm(x: Tensor, state: dict[str, Tensor], key: str, eps: float, groups: int = 32) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    mean = grouped.mean(2, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(2, keepdim=True)
    normalized = ((grouped - mean) / (variance + eps) ** 0.5).view(x.shape)
    return normalized * state[f"{key}.weight"][:, None, None] + state[f"{key}.bias"][:, None, None]


def stem(x: Tensor, state: dict[str, Tensor], conventions: ResNetConventions, prefix: str = "stem.") -> Tensor:
    x = convolve(x, state[f"{prefix}conv.weight"], 2, conventions)
    x = group_norm(x, state, f"{prefix}norm", conventions.group_norm_eps).clamp_min(0.0)
    return windows(x, 3, 2, conventions, -torch.inf).amax(dim=(-2, -1))


def unit(x: Tensor, state: dict[str, Tensor], key: str, stride: int, conventions: ResNetConventions) -> Tensor:
    eps, shortcut = conventions.group_norm_eps, x
    if f"{key}.downsample.conv.weight" in state:
        shortcut = convolve(x, state[f"{key}.downsample.conv.weight"], stride, conventions)
        by_channel = conventions.projection_norm == "channel"
        groups, projection_eps = (shortcut.shape[1], 1e-5) if by_channel else (32, eps)
        shortcut = group_norm(shortcut, state, f"{key}.downsample.norm", projection_eps, groups)
    x = group_norm(convolve(x, state[f"{key}.conv1.weight"], 1, conventions), state, f"{key}.norm1", eps).clamp_min(0)
    x = convolve(x, state[f"{key}.conv2.weight"], stride, conventions)
    x = group_norm(x, state, f"{key}.norm2", eps).clamp_min(0)
    x = group_norm(convolve(x, state[f"{key}.conv3.weight"], 1, conventions), state, f"{key}.norm3", eps)
    return (shortcut + x).clamp_min(0)


# --- tests ------------------------------------------------------------------------------------------------------------


def expected(x: Tensor, state: dict[str, Tensor], layers: tuple[int, ...], conventions: ResNetConventions) -> Tensor:
    x = stem(x, state, conventions)
    for stage, depth in enumerate(layers):
        for block in range(depth):
            x = unit(x, state, f"stages.{stage}.blocks.{block}", 2 if stage and not block else 1, conventions)
    return x


@pytest.mark.parametrize("size", [32, 33, 47])
@pytest.mark.parametrize("conventions", CONVENTIONS.values(), ids=list(CONVENTIONS))
def test_equations(conventions: ResNetConventions, size: int) -> None:
    layers = (1, 2)
    resnet = randomize(ResNet(3, layers, WIDTH, conventions))
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    features = resnet(x)
    torch.testing.assert_close(features, expected(x, resnet.state_dict(), layers, conventions))
    grid = resnet_grid_size(size, len(layers), conventions.padding)
    assert features.shape == (2, resnet_channels(layers, WIDTH), grid, grid)


@pytest.mark.parametrize("conventions", CONVENTIONS.values(), ids=list(CONVENTIONS))
def test_the_stem_alone(conventions: ResNetConventions) -> None:
    resnet_stem = randomize(ResNetStem(1, WIDTH, conventions))
    x = torch.randn(1, 1, 30, 30, dtype=torch.float64)
    features = resnet_stem(x)
    torch.testing.assert_close(features, stem(x, resnet_stem.state_dict(), conventions, prefix=""))
    assert features.shape[1:] == (resnet_channels((), WIDTH), *[resnet_grid_size(30, 0, conventions.padding)] * 2)


@pytest.mark.parametrize("field", [field.name for field in fields(ResNetConventions)])
def test_every_convention_counts(field: str) -> None:
    """Each changes the features by far more than parity with the originals tolerates."""
    other = {"padding": "symmetric", "weight_eps_place": "variance", "projection_norm": "channel"}.get(field, 1e-3)
    resnet = randomize(ResNet(3, (1,), WIDTH, GOOGLE))
    changed = ResNet(3, (1,), WIDTH, replace(GOOGLE, **{field: other})).double()
    changed.load_state_dict(resnet.state_dict())
    x = torch.randn(1, 3, 29, 29, dtype=torch.float64)  # 15 then 8 or 7
    x = 1e-2 * x if field == "group_norm_eps" else x
    theirs, ours = changed(x), resnet(x)
    rows = min(theirs.shape[-1], ours.shape[-1])
    difference = theirs[..., :rows, :rows] - ours[..., :rows, :rows]
    assert difference.norm() / ours.norm() > 1e-3


def test_standardized_kernels() -> None:
    conv = StdConv2d(3, 4, 5, conventions=GOOGLE)
    weight = conv.standardized_weight()
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.std(dim=(1, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    assert conv.bfloat16().standardized_weight().dtype == torch.bfloat16


@pytest.mark.parametrize("place", ["deviation", "variance"])
def test_constant_kernels_have_finite_gradients(place: Any) -> None:
    conv = StdConv2d(2, 2, 3, conventions=replace(GOOGLE, weight_eps_place=place))
    nn.init.constant_(conv.weight, 0.5)
    out = conv(torch.randn(1, 2, 4, 4))
    assert torch.equal(out, torch.zeros_like(out))
    out.square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()


def test_gradients() -> None:
    conv = StdConv2d(2, 3, 3, stride=2, conventions=GOOGLE).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: _with_weight(conv, x, weight), (x, conv.weight))


def _with_weight(conv: StdConv2d, x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.functional_call(conv, {"weight": weight}, (x,))


def test_patches_of_features() -> None:
    embed = randomize(HybridEmbed(32, 2, 3, 5, layers=(1,), width=WIDTH, conventions=GOOGLE))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tokens = F.conv2d(embed.backbone(x), embed.proj.weight, embed.proj.bias, stride=2)
    assert embed(x).shape == (2, 16, 5)
    torch.testing.assert_close(embed(x)[:, 6], tokens[:, :, 1, 2])
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, 32, 32\]"):
        embed(x[:, :, 1:])
    with pytest.raises(TypeError, match="floating point"):
        embed(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
