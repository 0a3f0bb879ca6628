"""The Dynamic Vision Transformer in plain torch, written from the published code's equations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from support import t2t_equations
from support.rounded_state import rounding_of
from support.t2t_equations import State, linear, mlp, norm, stored
from vitfast.models import DVTFields


def dvt(state: State, fields: DVTFields, images: Tensor) -> list[Tensor]:
    """Every exit's logits; ``state`` has our keys."""
    features: Tensor | None = None
    relations: list[Tensor] = []
    outputs = []
    for index in range(fields.num_exits):
        logits, features, relations = _exit(state, fields, index, images, features, relations)
        outputs.append(logits)
    return outputs


def _exit(
    state: State, fields: DVTFields, index: int, images: Tensor, features: Tensor | None, relations: list[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    name, eps, heads = f"exits.{index}", fields.layer_norm_eps, fields.num_heads
    x = _patches(state, fields, index, images)
    grid = round(x.shape[1] ** 0.5)
    x = t2t_equations.with_class_token(state, f"{name}.", x)
    biases: list[Tensor | float] = [0.0] * fields.depth
    if index and fields.relation_reuse:
        biases = list(_reused_relations(state, f"{name}.relation_reuse", relations, grid))

    own_relations = []
    for number in range(fields.depth):
        block = f"{name}.blocks.{number}"
        qkv = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, eps)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
        logits = q @ k.transpose(-1, -2) * (x.shape[-1] // heads) ** -0.5 + biases[number]
        own_relations.append(logits)
        attended = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = stored(state, x + linear(state, f"{block}.attn.proj", attended))
        wide = x
        if index and fields.feature_reuse:
            reused = _reused_features(state, f"{block}.feature_reuse", features, grid, eps)
            wide = stored(state, torch.cat([x, reused], dim=2))
        x = stored(state, x + mlp(state, f"{block}.mlp", norm(state, f"{block}.norm2", wide, eps)))
    return linear(state, f"{name}.head", norm(state, f"{name}.norm", x, eps)[:, 0]), x, own_relations


def _patches(state: State, fields: DVTFields, index: int, images: Tensor) -> Tensor:
    name = f"exits.{index}.patch_embed"
    split = (fields.patch_sizes[index], fields.patch_strides[index], fields.patch_paddings[index])
    if fields.backbone == "conv_vit":
        return _convolutions(state, name, fields.patch_sizes[index], images)
    if fields.backbone != "vit":
        return t2t_equations.tokens_to_token(state, name, images, split, fields.layer_norm_eps)
    return _conv2d(state, f"{name}.proj", images, stride=split[1], padding=split[2]).flatten(2).transpose(1, 2)


def _convolutions(state: State, name: str, patch_size: int, images: Tensor) -> Tensor:
    """One convolution on the pixels, and one for each halving of the grid; after each BatchNorm with its statistics."""
    x, first = images, 0
    for stride in [1] + [2] * round(torch.tensor(patch_size).log2().item()):
        x = F.conv2d(x, state[f"{name}.{first}.weight"], stride=stride, padding=1)
        mean, variance, weight, bias = (
            state[f"{name}.{first + 1}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x, first = ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0), first + 3
    x = F.conv2d(x, state[f"{name}.{first}.weight"], state[f"{name}.{first}.bias"])
    return x.flatten(2).transpose(1, 2)


def _reused_features(state: State, name: str, features: Tensor, grid: int, eps: float) -> Tensor:
    condensed = mlp(state, f"{name}.mlp", norm(state, f"{name}.norm", features, eps))[:, 1:].transpose(
        1, 2
    )  # [B, R, n]
    larger = _to_grid(condensed, grid).transpose(1, 2)
    return torch.cat([torch.zeros_like(larger[:, :1]), larger], dim=1)


def _reused_relations(state: State, name: str, relations: list[Tensor], grid: int) -> tuple[Tensor, ...]:
    x = torch.cat(relations, dim=1)
    x = _conv2d(state, f"{name}.mlp.2", F.gelu(_conv2d(state, f"{name}.mlp.0", x)))
    for _ in range(2):  # columns, then rows
        x = torch.cat([x[..., :1], _to_grid(x[..., 1:], grid)], dim=-1).transpose(2, 3)
    return x.chunk(len(relations), dim=1)


def _conv2d(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    rounding = rounding_of(state)
    weight, bias = rounding.operand(state[f"{name}.weight"]), state[f"{name}.bias"]
    return rounding.result(F.conv2d(rounding.operand(x), weight, bias, stride=stride, padding=padding))


def _to_grid(x: Tensor, grid: int) -> Tensor:
    """Resamples ``[..., g * g]`` to ``[..., G * G]``: nearest to a whole multiple, then adaptive average pooling."""
    side = round(x.shape[-1] ** 0.5)
    larger = side * -(-grid // side)
    flat = F.interpolate(x.reshape(1, -1, side, side), size=(larger, larger), mode="nearest")
    return F.adaptive_avg_pool2d(flat, grid).reshape(*x.shape[:-1], grid * grid)
