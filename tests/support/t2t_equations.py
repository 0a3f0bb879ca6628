"""T2T-ViT's tokens-to-token module in plain torch, written from the published code's equations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from support.rounded_state import rounding_of

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    rounding = rounding_of(state)
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    return rounding.result(F.linear(rounding.operand(x), rounding.operand(weight), bias))


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    rounding = rounding_of(state)
    gamma, beta = rounding.gamma(state[f"{name}.weight"]), state[f"{name}.bias"]
    return rounding.result(F.layer_norm(rounding.operand(x), x.shape[-1:], gamma, beta, eps))


def stored(state: State, x: Tensor) -> Tensor:
    """What an addition or concatenation writes."""
    return rounding_of(state).stored(x)


def with_class_token(state: State, name: str, patches: Tensor) -> Tensor:
    """Puts the class token before the patches and adds the positions; ``name`` is a prefix with its dot, or empty."""
    token = state[f"{name}cls_token"].expand(len(patches), -1, -1)
    return stored(state, stored(state, torch.cat([token, patches], dim=1)) + state[f"{name}pos_embed"])


def self_attention(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(state, f"{name}.qkv", x).chunk(3, dim=-1)
    )
    attended = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
    return linear(state, f"{name}.proj", attended.transpose(1, 2).flatten(2))


def mlp(state: State, name: str, x: Tensor) -> Tensor:
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", x)))


def block(state: State, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
    x = stored(state, x + self_attention(state, f"{name}.attn", norm(state, f"{name}.norm1", x, eps), heads))
    return stored(state, x + mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, eps)))


def performer_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Random-feature attention as the T2T-ViT code evaluates it, with every step in whatever type it comes to."""

    def phi(x: Tensor) -> Tensor:
        squared = (x * x).sum(dim=-1, keepdim=True) / 2
        return torch.exp(torch.einsum("bti,mi->btm", x, w) - squared) / len(w) ** 0.5

    phi_q, phi_k = phi(q), phi(k)
    denominator = torch.einsum("bti,bi->bt", phi_q, phi_k.sum(dim=1)).unsqueeze(2)
    weighted = torch.einsum("bin,bim->bnm", v, phi_k)
    return torch.einsum("bti,bni->btn", phi_q, weighted) / (denominator + 1e-8)


def token_performer(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    k, q, v = linear(state, f"{name}.kqv", norm(state, f"{name}.norm1", x, eps)).chunk(3, dim=-1)
    x = stored(state, v + linear(state, f"{name}.proj", performer_attention(q, k, v, state[f"{name}.w"])))
    hidden = F.gelu(linear(state, f"{name}.mlp.0", norm(state, f"{name}.norm2", x, eps)))
    return stored(state, x + linear(state, f"{name}.mlp.2", hidden))


def token_transformer(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    q, k, v = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, eps)).chunk(3, dim=-1)
    probabilities = (q @ k.transpose(1, 2) / x.shape[-1] ** 0.5).softmax(dim=-1)
    x = stored(state, v + linear(state, f"{name}.attn.proj", probabilities @ v))
    return stored(state, x + mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, eps)))


def tokens_to_token(state: State, name: str, images: Tensor, split: tuple[int, int, int], eps: float) -> Tensor:
    """Three soft splits with two attentions between; ``split`` is (patch size, stride, padding) of the first."""
    attention = token_performer if f"{name}.attention1.w" in state else token_transformer
    size, stride, padding = split
    x = F.unfold(images, size, stride=stride, padding=padding).transpose(1, 2)
    for layer in ("attention1", "attention2"):
        x = attention(state, f"{name}.{layer}", x, eps)
        side = round(x.shape[1] ** 0.5)
        x = x.transpose(1, 2).reshape(len(x), -1, side, side)
        x = F.unfold(x, 3, stride=2, padding=1).transpose(1, 2)
    return linear(state, f"{name}.project", x)
