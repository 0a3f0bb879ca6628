"""ConViT's attention: the softmax of the content, blended with probabilities by position.

Shapes: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.attention import (
    CUDA_SHARED_BYTES,
    HEAD_DIM_MULTIPLE,
    MAX_HEAD_DIM,
    attention_flops,
    attention_packed,
)
from vitfast.ops.autocast import autocast_dtype, cast
from vitfast.ops.checks import check_like, check_shape, check_tensor
from vitfast.ops.library import has_kernel, has_shared_memory

CUDA_DTYPES = (torch.float16, torch.bfloat16)
CUDA_MAX_TOKENS = 256  # up to which keys and values of a head lie whole on chip


def gated_positional_attention(qkv: Tensor, position: Tensor, gate: Tensor, *, scale: float | None = None) -> Tensor:
    """Computes ``((1 - gate) softmax(scale * q kᵀ) + gate position) v`` (d'Ascoli et al., 2021, eq. 7).

    The rows of both attentions sum to 1, and so do those of the blend; they are not divided by their sums again. The
    kernel is one for inference: where a gradient is needed, attention and ``position v`` are computed apart, as they
    are where there is no kernel (head dimensions that are no multiple of 8 up to 128; on CUDA float32 and float64, and
    more than 256 tokens).

    Args:
        qkv: ``[B, N, 3, H, D]``, float32, bfloat16, float16 or float64.
        position: ``[H, N, N]``, rows that sum to 1: probabilities by position, the same for all images.
        gate: ``[H]``, 0 to 1, of any of these types; it is used in float32, or in float64 for such a qkv.
        scale: factor of the logits; None means ``D ** -0.5``.

    Returns:
        ``[B, N, H, D]``, which ``reshape(B, N, H * D)`` views without a copy.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the types of qkv and position differ.
        ValueError: shapes or devices do not go together.
    """
    check_tensor("qkv", qkv, ndim=5, shape="[B, N, 3, H, D]")
    _, tokens, three, heads, head_dim = qkv.shape
    if three != 3 or head_dim == 0:
        raise ValueError(f"qkv must have shape [B, N, 3, H, D] with D of at least 1, got {list(qkv.shape)}")
    dtype = autocast_dtype(qkv)
    check_tensor("position", position, ndim=3, shape="[H, N, N]")
    check_like("position", position, "qkv", qkv, same_dtype=dtype is None)
    check_shape("position", position, (heads, tokens, tokens), "[H, N, N] of qkv")
    check_tensor("gate", gate, ndim=1, shape="[H]")
    check_like("gate", gate, "qkv", qkv, same_dtype=False)
    check_shape("gate", gate, (heads,), "[H] of qkv")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    scale = head_dim**-0.5 if scale is None else float(scale)

    qkv, position = cast(qkv, dtype), cast(position, dtype)
    gate = gate.to(torch.promote_types(qkv.dtype, torch.float32))
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (qkv, position, gate))
    if has_gated_kernel(qkv.device, qkv.dtype, tokens, head_dim) and not needs_grad:
        out: Tensor = torch.ops.vitfast.gated_positional_attention.default(qkv, position, gate, scale)
        return out
    with torch.autocast(qkv.device.type, enabled=False):
        content_BNHD = attention_packed(qkv, scale=scale)
        return reference.blend_by_position(content_BNHD, position, qkv[:, :, 2], gate)


def has_gated_kernel(device: torch.device, dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether the kernel runs such tensors, where no gradient is needed.

    Who can compute the position's part more cheaply than by the whole ``[H, N, N]`` asks this first.

    Args:
        device: of the tensors.
        dtype: of q, k and v.
        tokens: N.
        head_dim: D.
    """
    if not has_kernel("gated_positional_attention", device.type):
        return False
    if head_dim > MAX_HEAD_DIM or head_dim % HEAD_DIM_MULTIPLE != 0:
        return False
    if device.type != "cuda":
        return True
    if dtype not in CUDA_DTYPES or tokens > CUDA_MAX_TOKENS:
        return False
    return has_shared_memory(device, CUDA_SHARED_BYTES)


def _fake(qkv: Tensor, position: Tensor, gate: Tensor, scale: float) -> Tensor:
    batch, tokens, _, heads, head_dim = qkv.shape
    return qkv.new_empty((batch, tokens, heads, head_dim))


def _flops(qkv: Any, *_: Any, **__: Any) -> int:
    """Those of the two products of attention: the blend is no product."""
    batch, tokens, _, heads, head_dim = qkv
    return attention_flops((batch, heads, tokens, head_dim), 2)


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    torch.library.register_fake("vitfast::gated_positional_attention")(_fake)
    register_flop_formula(torch.ops.vitfast.gated_positional_attention)(_flops)


if has_kernel("gated_positional_attention", "meta"):
    _register()
