"""Each operator in plain PyTorch: the reference, in float64 the exact result.

Deliberately written apart from ``vitfast.ops.reference``, with the public functions' signatures.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from support import accumulate_oracle, fixed_oracle
from support.float_oracle import round_tensor
from vitfast.formats import FloatFormat
from vitfast.ops.attention import HEAD_DIM_MULTIPLE


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_logits: bool = False,
) -> tuple[Tensor, ...]:
    """softmax(scale * q kᵀ + bias) v; by torch's fused operator where that replaces a missing kernel."""
    runs_on_torch = q.shape[-1] % HEAD_DIM_MULTIPLE and q.numel() and not return_logits
    if runs_on_torch and q.dtype != torch.float64:
        return (F.scaled_dot_product_attention(q, k, v, bias, scale=scale),)
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    out = torch.einsum("bhnm,bhmd->bhnd", torch.softmax(logits, -1), v)
    return (out, logits) if return_logits else (out,)


def attention_packed(qkv: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The same on [B, N, 3, H, D]."""
    out, *logits = attention(*(tensor.transpose(1, 2) for tensor in qkv.unbind(2)), **options)
    return out.transpose(1, 2), *logits


def gated_positional_attention(qkv: Tensor, position: Tensor, gate: Tensor, *, scale: float | None = None) -> Tensor:
    """The blend of both attentions times v, as d'Ascoli et al. (2021) write it, without the division by row sums."""
    q, k, v = qkv.unbind(2)
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    gate = gate.to(qkv.dtype)[:, None, None]
    attention = (1 - gate) * torch.softmax(logits, -1) + gate * position
    return torch.einsum("bhnm,bmhd->bnhd", attention, v)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """LayerNorm by torch, whose parameters have x's type."""
    weight, bias = (None if parameter is None else parameter.to(x.dtype) for parameter in (weight, bias))
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(x + residual, its LayerNorm)."""
    summed = x + residual
    return summed, layer_norm(summed, weight, bias, eps)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Residual + scale * activation(x weightᵀ + bias)."""
    y = F.linear(x, weight, bias)
    y = {"none": lambda y: y, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}[activation](y)
    y = y if scale is None else scale * y
    return y if residual is None else residual + y


def mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    approximate: str = "none",
) -> Tensor:
    """fc2(gelu(fc1(x))) + residual."""
    out = F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate=approximate), fc2_weight, fc2_bias)
    return out if residual is None else residual + out


def quantize_float(
    x: Tensor, format: FloatFormat, *, rounding: str = "nearest_even", overflow: str | None = None
) -> Tensor:
    """The oracle's rounding with the straight-through gradient."""
    return _straight_through(x, round_tensor(x, format, rounding, overflow))


def quantize_fixed(x: Tensor, word_length: int, fraction_length: int, **options: Any) -> Tensor:
    """The oracle's rounding with the straight-through gradient; there is no -0."""
    rounded = fixed_oracle.round_tensor(x, word_length, fraction_length, **options)
    return _straight_through(x, torch.where(rounded == 0, 0.0, rounded).to(x.dtype))


def matmul_accumulate(
    x: Tensor, w: Tensor, accumulator: FloatFormat, chunk: int | None, *, rounding: str = "nearest_even"
) -> Tensor:
    """The oracle's loop with the gradient of the ordinary product, in float32."""
    result = accumulate_oracle.matmul_accumulate(x.detach(), w.detach(), accumulator, chunk, rounding)
    product: Tensor = _ProductGradient.apply(x.float(), w.float(), result)
    return product.to(x.dtype)


def upsample_relations(x: Tensor, matrix: Tensor) -> Tensor:
    """Two GEMMs with the dense matrix."""
    return torch.einsum("Ii,bhij,Jj->bhIJ", matrix.to(x.dtype), x, matrix.to(x.dtype))


def _straight_through(x: Tensor, result: Tensor) -> Tensor:
    passed: Tensor = _StraightThrough.apply(x, result)
    return passed


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return grad, None


class _ProductGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, result: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        rows, x_rows = (tensor.flatten(0, -2) if tensor.dim() > 1 else tensor[None] for tensor in (grad, x))
        return (rows.contiguous() @ w).view(x.shape), rows.contiguous().t() @ x_rows, None
