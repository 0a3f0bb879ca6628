"""The operators of accelerated models: products with packed weights, and what is fused with them. Inference only.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, O outputs of a product, K its inputs, T tokens before
the patches. The schemas and the exact arithmetic of each precision are in ``csrc/library.cpp``; these operators are
called by ``vitfast.inference.cpu`` only, which checks what it passes when it packs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitfast.ops.library import has_kernel
from vitfast.ops.registration import gemm_flops


@functools.cache
def has_packed(operator: str, device_type: str = "cpu") -> bool:
    """Whether an operator on packed weights is there: the library is loaded and holds it, and the device is a CPU."""
    return device_type == "cpu" and has_kernel("packed", "cpu") and hasattr(torch.ops.vitfast, operator)


def _fake_linear(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    precision: str,
    activation: str,
    scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=torch.float32)


def _fake_norm_linear(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    precision: str,
    activation: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=torch.float32)


def _fake_mlp(x: Tensor, *arguments: Any) -> Tensor:
    n = arguments[8]
    return x.new_empty((*x.shape[:-1], n), dtype=torch.float32)


def _fake_block(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _fake_attention(qkv: Tensor, scale: float, precision: str) -> Tensor:
    batch, tokens, _, heads, head_dim = qkv.shape
    return qkv.new_empty((batch, tokens, heads, head_dim))


def _fake_related_attention(
    qkv: Tensor, relations: Tensor | None, matrix: Tensor | None, scale: float, return_logits: bool
) -> tuple[Tensor, Tensor | None]:
    batch, tokens, _, heads, head_dim = qkv.shape
    logits = qkv.new_empty((batch, heads, tokens, tokens)) if return_logits else None
    return qkv.new_empty((batch, tokens, heads, head_dim)), logits


def _fake_patch_embed(
    images: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    patch_h: int,
    patch_w: int,
    shift: Tensor | None,
    prefix: Tensor,
    positions: Tensor | None,
    precision: str,
) -> Tensor:
    batch, _, height, width = images.shape
    tokens = prefix.shape[0] + (height // patch_h) * (width // patch_w)
    return images.new_empty((batch, tokens, n), dtype=torch.float32)


def _split_grid(images: Any, patch: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> tuple[Any, Any]:
    """Patches down and across, of images' sizes."""
    down, across = (
        (size + 2 * zeros - window) // step + 1
        for size, window, step, zeros in zip(images[2:], patch, stride, padding, strict=True)
    )
    return down, across


def _fake_split_linear(
    images: Tensor,
    patch: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float | None,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    precision: str,
) -> Tensor:
    down, across = _split_grid(images.shape, patch, stride, padding)
    return images.new_empty((images.shape[0], down * across, n), dtype=torch.float32)


def _fake_performer(kqv: Tensor, projection: Tensor, epsilon: float) -> Tensor:
    return kqv.new_empty((*kqv.shape[:-1], kqv.shape[-1] // 3))


def _fake_pack_weight(weight: Tensor, precision: str) -> Tensor:
    raise NotImplementedError("weights are packed once, by vitfast.accelerate, and never within a traced program")


# --- floating-point operations, for torch.utils.flop_counter ---


def _linear_flops(x: Any, packed: Any, bias: Any, n: int, *_: Any, **__: Any) -> int:
    return gemm_flops(x, n)


def _norm_linear_flops(
    x: Any, gamma: Any, beta: Any, eps: float, packed: Any, bias: Any, n: int, *_: Any, **__: Any
) -> int:
    return gemm_flops(x, n)


def _mlp_flops(
    x: Any,
    gamma: Any,
    beta: Any,
    eps: float | None,
    fc1: Any,
    b1: Any,
    hidden: int,
    fc2: Any,
    b2: Any,
    n: int,
    *_: Any,
    **__: Any,
) -> int:
    return gemm_flops(x, hidden) + gemm_flops((*x[:-1], hidden), n)


def _attention_flops(qkv: Any, *_: Any, **__: Any) -> int:
    batch, tokens, _three, heads, head_dim = qkv
    return 4 * int(batch * heads * tokens * tokens * head_dim)


def _block_flops(x: Any, *arguments: Any, **_: Any) -> int:
    heads, head_dim, hidden = arguments[11], arguments[12], arguments[22]
    inner = heads * head_dim
    products = gemm_flops(x, 3 * inner) + gemm_flops((*x[:-1], inner), x[-1])
    return products + 2 * gemm_flops(x, hidden) + _attention_flops((x[0], x[1], 3, heads, head_dim))


def _patch_embed_flops(images: Any, packed: Any, bias: Any, n: int, *_: Any, **__: Any) -> int:
    return gemm_flops(images, n)


def _split_flops(
    images: Any,
    patch: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    gamma: Any,
    beta: Any,
    eps: float | None,
    packed: Any,
    bias: Any,
    n: int,
    *_: Any,
    **__: Any,
) -> int:
    return gemm_flops((*images[:2], *_split_grid(images, patch, stride, padding), *patch), n)


def _performer_flops(kqv: Any, projection: Any, *_: Any, **__: Any) -> int:
    batch, tokens, width = kqv
    return 4 * gemm_flops((batch, tokens, width // 3), projection[0])


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    parts: dict[str, tuple[Any, Any]] = {
        "packed_linear": (_fake_linear, _linear_flops),
        "packed_norm_linear": (_fake_norm_linear, _norm_linear_flops),
        "packed_mlp": (_fake_mlp, _mlp_flops),
        "packed_block": (_fake_block, _block_flops),
        "packed_attention": (_fake_attention, _attention_flops),
        "packed_related_attention": (_fake_related_attention, _attention_flops),
        "packed_patch_embed": (_fake_patch_embed, _patch_embed_flops),
        "packed_performer": (_fake_performer, _performer_flops),
        "packed_split_linear": (_fake_split_linear, _split_flops),
    }
    for operator, (fake, flops) in parts.items():
        if has_packed(operator):
            torch.library.register_fake(f"vitfast::{operator}")(fake)
            register_flop_formula(getattr(torch.ops.vitfast, operator))(flops)
    if has_packed("pack_weight"):
        torch.library.register_fake("vitfast::pack_weight")(_fake_pack_weight)


_register()
