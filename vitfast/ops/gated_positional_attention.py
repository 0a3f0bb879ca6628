"""ConViT's gated positional self-attention: content attention blended with positional attention.

Shapes: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.arguments import attention_scale, check_like, check_tensor, needs_gradient
from vitfast.ops.attention import attention_packed, fake_packed_out, fits_cuda, is_supported_head_dim
from vitfast.ops.autocast import autocast_dtype, cast
from vitfast.ops.library import fills_gpu, has_kernel
from vitfast.ops.registration import attention_flops, register


def gated_positional_attention(qkv: Tensor, position: Tensor, gate: Tensor, *, scale: float | None = None) -> Tensor:
    """Computes ``((1 - gate) softmax(scale * q kᵀ) + gate position) v`` (d'Ascoli et al., 2021, eq. 7).

    The rows of both attentions sum to 1, hence those of the blend do; they are not normalized again. The kernel is
    inference only: content attention and ``position v`` are computed separately if a gradient is required, if the head
    dimension is not a multiple of 8 up to 128 (on CUDA up to 64), and on CUDA for float32, float64, more than 200
    tokens, or fewer heads in the batch than multiprocessors.

    Args:
        qkv: ``[B, N, 3, H, D]``, float32, bfloat16, float16 or float64.
        position: ``[H, N, N]``, positional attention with rows that sum to 1, shared by all images.
        gate: ``[H]``, 0 to 1, any of these dtypes; used in float32, or in float64 if qkv is float64.
        scale: factor of the logits; None is ``D ** -0.5``.

    Returns:
        ``[B, N, H, D]``, which ``reshape(B, N, H * D)`` views without a copy.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes of qkv and position differ.
        ValueError: shapes or devices do not match.
    """
    check_tensor("qkv", qkv, ndim=5, shape="[B, N, 3, H, D]")
    batch, tokens, three, heads, head_dim = qkv.shape
    if three != 3 or head_dim == 0:
        raise ValueError(f"qkv must have shape [B, N, 3, H, D] with D of at least 1, got {list(qkv.shape)}")
    dtype = autocast_dtype(qkv)
    check_tensor("position", position, ndim=3, shape="[H, N, N]")
    position_shape = (heads, tokens, tokens)
    check_like("position", position, "qkv", qkv, position_shape, "[H, N, N] of qkv", same_dtype=dtype is None)
    check_tensor("gate", gate, ndim=1, shape="[H]")
    check_like("gate", gate, "qkv", qkv, (heads,), "[H] of qkv", same_dtype=False)
    scale = attention_scale(scale, head_dim)

    qkv, position = cast(qkv, dtype), cast(position, dtype)
    gate = gate.to(torch.promote_types(qkv.dtype, torch.float32))
    is_fused = has_gated_kernel(qkv.device, qkv.dtype, tokens, head_dim) and not needs_gradient(qkv, position, gate)
    if is_fused and (not qkv.is_cuda or fills_gpu(batch * heads, qkv.device)):
        out: Tensor = torch.ops.vitfast.gated_positional_attention.default(qkv, position, gate, scale)
        return out
    with torch.autocast(qkv.device.type, enabled=False):
        content_BNHD = attention_packed(qkv, scale=scale)
        return reference.blend_by_position(content_BNHD, position, qkv[:, :, 2], gate)


def has_gated_kernel(device: torch.device, dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether the kernel runs for such q, k and v if no gradient is required.

    Otherwise, a caller may compute the positional part from a factorization instead of the full ``[H, N, N]``.
    """
    if not has_kernel("gated_positional_attention", device.type):
        return False
    return fits_cuda(dtype, tokens, head_dim) if device.type == "cuda" else is_supported_head_dim(head_dim)


register("gated_positional_attention", fake_packed_out, flops=attention_flops)  # without the blend
