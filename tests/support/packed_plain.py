"""The packed operators in plain PyTorch: the same operands, rounded the same way, multiplied in the type of the input.

Called with float64 tensors and ``precision="exact"`` they are the exact result; with float32 ones and a precision, what
PyTorch makes of the same roundings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitfast.inference.modules.position_bias import BiasTables
from vitfast.layers.rotary import RotaryTables

ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
    "silu": functional.silu,
    "relu": torch.relu,
}


def quantized_weight(weight: Tensor) -> Tensor:
    """What int8 keeps of a float32 weight ``[N, K]``, in float32."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return (weight / scale).round().clamp(-127, 127) * scale


def quantized_rows(x: Tensor) -> Tensor:
    """What int8 keeps of float32 activations ``[..., K]``: a scale for each row and group of up to 1024 inputs."""
    groups = math.ceil(x.shape[-1] / 1024)
    size = x.shape[-1] if groups == 1 else math.ceil(math.ceil(x.shape[-1] / groups) / 64) * 64
    kept = []
    for group in x.split(size, -1):
        largest = group.abs().amax(-1, keepdim=True)
        # a tensor: a number divided by a tensor is its reciprocal times the number, rounded twice
        inverse = torch.where(largest > 0, torch.full_like(largest, 127.0) / largest, 0.0)
        kept.append((group.double() * inverse.double()).round() * largest.double() / 127)
    return torch.cat(kept, -1).to(x.dtype)


def operand(x: Tensor, precision: str) -> Tensor:
    """An activation as the product reads it."""
    if precision == "bf16":
        return x.bfloat16().to(x.dtype)
    if precision == "fp16_32":
        return x.half().to(x.dtype)
    return quantized_rows(x) if precision == "int8" else x


def kept_weight(weight: Tensor, precision: str) -> Tensor:
    """A weight rounded as in the packed layout, in its dtype."""
    return quantized_weight(weight) if precision == "int8" else operand(weight, precision)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    precision: str,
    activation: str = "none",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``residual + scale * activation(x wᵀ + bias)``."""
    out = ACTIVATIONS[activation](functional.linear(operand(x, precision), kept_weight(weight, precision), bias))
    out = out if scale is None else out * scale
    return out if residual is None else out + residual


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, precision: str) -> Tensor:
    """LayerNorm; of fp16_32 on a rounded input."""
    return functional.layer_norm(
        operand(x, precision) if precision == "fp16_32" else x, x.shape[-1:], weight, bias, eps
    )


def attention(
    qkv: Tensor,
    scale: float,
    precision: str,
    positions: RotaryTables | BiasTables | None = None,
    padding: Tensor | None = None,
    cosine: Tensor | None = None,
) -> Tensor:
    """``[B, N, 3, H, D] -> [B, N, H, D]``; bfloat16 operands in bf16 and int8."""
    if not isinstance(positions, BiasTables) or positions.windows is None:
        return _attention(qkv, scale, precision, positions, cosine)
    tokens = qkv.shape[1]
    empty = qkv.new_zeros(qkv.shape[2:]) if padding is None else padding.to(qkv.dtype).view(qkv.shape[2:])
    padded = torch.cat([qkv, empty.expand(len(qkv), 1, -1, -1, -1)], dim=1)
    out = padded.new_zeros((len(qkv), tokens + 1, *qkv.shape[3:]))
    for index, window in enumerate(positions.windows):
        pattern = 0 if positions.patterns is None else int(positions.patterns[index])
        bias = None if positions.bias is None else positions.bias[pattern : pattern + 1]
        if positions.lengths is not None:
            length = int(positions.lengths[index])
            window, bias = window[:length], None if bias is None else bias[..., :length, :length]
        out[:, window] = _attention(
            padded[:, window], scale, precision, positions._replace(bias=bias, windows=None), cosine
        )
    return out[:, :tokens]


def _attention(
    qkv: Tensor, scale: float, precision: str, positions: RotaryTables | BiasTables | None, cosine: Tensor | None
) -> Tensor:
    narrow = precision in ("bf16", "int8")
    rounded = (lambda x: x.bfloat16().to(x.dtype)) if narrow else (lambda x: x)
    q, k, v = rounded(qkv).unbind(2)
    if isinstance(positions, RotaryTables):
        q, k = rounded(positions.rotate(q)), rounded(positions.rotate(k))
    if cosine is not None:
        q = rounded(functional.normalize(q, dim=-1) * cosine[:, None].to(q.dtype))
        k = rounded(functional.normalize(k, dim=-1))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) * scale
    if isinstance(positions, BiasTables) and positions.bias is not None:
        logits = logits + positions.bias.to(logits.dtype)
    if isinstance(positions, BiasTables) and positions.row_terms is not None:
        logits = logits + _query_bias(q.transpose(1, 2), positions.row_terms, positions.column_terms)
    weights = rounded(logits.softmax(-1))
    return (weights @ v).transpose(1, 2)


def _query_bias(q: Tensor, row_terms: Tensor, column_terms: Tensor) -> Tensor:
    """The bias ``[B, H, n, n]`` of queries ``[B, n, H, D]``, one query and key after the other."""
    height, width = ((terms.shape[1] + 1) // 2 for terms in (row_terms, column_terms))
    places = [divmod(token, width) for token in range(height * width)]
    terms = [
        torch.stack([row_terms[:, i - y + height - 1] + column_terms[:, j - x + width - 1] for i, j in places])
        for y, x in places
    ]
    return torch.einsum("bnhd,nkd->bhnk", q, torch.stack(terms).to(q.dtype))


def related_attention(
    qkv: Tensor, relations: Tensor | None, matrix: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """``[B, N, 3, H, D]``, ``[B, H, n, n]``, ``[N, n] -> [B, N, H, D]`` and the logits, in qkv's type."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) * scale
    if relations is not None:
        relations = relations.to(qkv.dtype)
        logits = logits + (relations if matrix is None else matrix.to(qkv.dtype) @ relations @ matrix.to(qkv.dtype).t())
    return (logits.softmax(-1) @ v).transpose(1, 2), logits


def block(
    x: Tensor,
    p: dict[str, Tensor],
    heads: int,
    activation: str,
    precision: str,
    positions: RotaryTables | BiasTables | None = None,
) -> Tensor:
    """A pre-norm block; ``p``: its parameters by the operator's names, what is absent is not there."""
    batch, tokens, _ = x.shape
    inner = p["qkv"].shape[0] // 3
    normed = norm(x, p.get("norm1_weight"), p.get("norm1_bias"), 1e-6, precision)
    qkv = linear(normed, p["qkv"], p.get("qkv_bias"), precision).view(batch, tokens, 3, heads, inner // heads)
    attended = attention(qkv, (inner // heads) ** -0.5, precision, positions, p.get("qkv_bias"))
    attended = attended.reshape(batch, tokens, inner)
    x = linear(attended, p["proj"], p.get("proj_bias"), precision, scale=p.get("scale1"), residual=x)
    normed = norm(x, p.get("norm2_weight"), p.get("norm2_bias"), 1e-6, precision)
    if "gate" in p:
        gate = linear(normed, p["gate"], p.get("gate_bias"), precision, activation)
        hidden = gate * linear(normed, p["fc1"], p.get("fc1_bias"), precision)
    else:
        hidden = linear(normed, p["fc1"], p.get("fc1_bias"), precision, activation)
    return linear(hidden, p["fc2"], p.get("fc2_bias"), precision, scale=p.get("scale2"), residual=x)
