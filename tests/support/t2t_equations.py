"""T2T-ViT's tokens-to-token module in plain torch, written from the published code's equations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


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
    x = v + linear(state, f"{name}.proj", performer_attention(q, k, v, state[f"{name}.w"]))
    hidden = F.gelu(linear(state, f"{name}.mlp.0", norm(state, f"{name}.norm2", x, eps)))
    return x + linear(state, f"{name}.mlp.2", hidden)


def token_transformer(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    q, k, v = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, eps)).chunk(3, dim=-1)
    probabilities = (q @ k.transpose(1, 2) / x.shape[-1] ** 0.5).softmax(dim=-1)
    x = v + linear(state, f"{name}.attn.proj", probabilities @ v)
    hidden = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, eps)))
    return x + linear(state, f"{name}.mlp.fc2", hidden)


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
