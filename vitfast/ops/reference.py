"""Every operator in plain PyTorch: the oracle of the tests, and the fallback without a kernel.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, F hidden (feed-forward) width.
The arguments are assumed to be valid: the public functions of this package check them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfast.formats import FloatFormat
from vitfast.ops.arguments import GELU_APPROXIMATE
from vitfast.ops.autocast import cast
from vitfast.ops.rounding import FixedOverflow, Rounding


def attention(
    q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, bias_BHNN: Tensor | None, scale: float, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Returns (softmax(scale * q kᵀ + bias) v, the logits before the softmax)."""
    logits_BHNN = (q_BHND * scale) @ k_BHND.transpose(-2, -1)
    if bias_BHNN is None:
        probabilities_BHNN = logits_BHNN.softmax(-1)
    else:
        logits_BHNN = logits_BHNN + bias_BHNN
        masked_BHN1 = (logits_BHNN == -torch.inf).all(-1, keepdim=True)  # the result is zero
        probabilities_BHNN = logits_BHNN.masked_fill(masked_BHN1, 0.0).softmax(-1).masked_fill(masked_BHN1, 0.0)
    if dropout_p:
        probabilities_BHNN = F.dropout(probabilities_BHNN, dropout_p)
    return probabilities_BHNN @ v_BHND, logits_BHNN


def gated_positional_attention(qkv_BN3HD: Tensor, position_HNN: Tensor, gate_H: Tensor, scale: float) -> Tensor:
    """Returns ((1 - gate) softmax(scale * q kᵀ) + gate position) v, [B, N, H, D]."""
    q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4)
    content_BHND, _ = attention(q_BHND, k_BHND, v_BHND, None, scale)
    return blend_by_position(content_BHND.transpose(1, 2), position_HNN, qkv_BN3HD[:, :, 2], gate_H)


def blend_by_position(content_BNHD: Tensor, position_HNN: Tensor, v_BNHD: Tensor, gate_H: Tensor) -> Tensor:
    """Returns (1 - gate) content + gate position v."""
    positional_BNHD = (position_HNN @ v_BNHD.transpose(1, 2)).transpose(1, 2)
    return torch.lerp(content_BNHD, positional_BNHD, gate_H[:, None].to(content_BNHD.dtype)).contiguous()


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Returns (x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, in x's dtype."""
    dtype = x.dtype  # torch's operator supports one dtype: the widest of the arguments'
    for parameter in (weight, bias):
        dtype = dtype if parameter is None else torch.promote_types(dtype, parameter.dtype)
    channels = x.shape[-1:] if weight is None else weight.shape  # of a parameter they are constants in an ONNX export
    return F.layer_norm(x.to(dtype), channels, cast(weight, dtype), cast(bias, dtype), eps).to(x.dtype)


def linear(
    x: Tensor,  # [..., K]
    weight_NK: Tensor,
    bias_N: Tensor | None,
    activation: str,
    scale_N: Tensor | None,
    residual: Tensor | None,  # [..., N]
) -> Tensor:
    """Returns residual + scale * activation(x weightᵀ + bias)."""
    y = F.linear(x, weight_NK, bias_N)
    if activation != "none":
        y = F.gelu(y, approximate=GELU_APPROXIMATE[activation])
    if scale_N is not None:
        y = y * scale_N
    return y if residual is None else residual + y


def quantize_float(
    x: Tensor, format: FloatFormat, rounding: Rounding, overflow: str, random: Tensor | None = None
) -> Tensor:
    """Rounds to the nearest (or next) value of ``format``; computed in float64, where each step is exact.

    ``random``: for stochastic rounding, words of 32 random bits in x's shape. The fraction and the word are compared in
    units of 2**-31, as in the kernel.
    """
    if rounding == "qtorch" and x.dtype != torch.float64:
        return quantize_float_as_qtorch(x.float(), format).to(x.dtype)
    exact = x.to(torch.float64)
    magnitude = exact.abs()
    min_exponent = 2 - 2 ** (format.exponent_bits - 1)
    exponent = torch.frexp(magnitude).exponent - 1
    is_normal = exponent >= min_exponent
    exponent = exponent.clamp(min=min_exponent)
    quantum = torch.ldexp(torch.ones_like(magnitude), exponent - format.mantissa_bits)

    steps = magnitude / quantum
    lower = steps.floor()
    remainder = steps - lower
    odd = lower % 2 == 1
    if format.mantissa_bits == 0:  # the code of a normal value is its exponent: a tie goes to the even one
        odd = torch.where(is_normal, (exponent - min_exponent) % 2 == 0, odd)
    rounded = (lower + _rounds_up(remainder, odd, rounding, random)) * quantum

    too_large = rounded > format.max_value
    beyond = {"inf": torch.inf, "nan": torch.nan, "saturate": format.max_value}
    rounded = torch.where(too_large, beyond[overflow], rounded)
    infinity = torch.inf if format.has_inf else beyond[overflow]
    rounded = torch.where(magnitude == torch.inf, infinity, rounded)
    rounded = torch.where(torch.signbit(x), -rounded, rounded)
    if not format.signed_zero:
        rounded = torch.where(rounded == 0, 0.0, rounded)
    rounded = torch.where(torch.isnan(exact), exact if format.has_nan else format.max_value, rounded)
    return rounded.to(x.dtype)


def _rounds_up(remainder: Tensor, odd: Tensor, rounding: Rounding, random: Tensor | None) -> Tensor:
    """Whether to round up, given the distance to the lower neighbour, 0 to 1, and whether that neighbour is odd."""
    if rounding == "toward_zero":
        return torch.zeros_like(odd)
    if rounding == "stochastic":
        if random is None:
            raise ValueError("stochastic rounding needs random numbers")
        return (remainder * 2.0**31).floor() + (random >> 1) >= 2.0**31
    if rounding == "nearest_even":
        return (remainder > 0.5) | ((remainder == 0.5) & odd)
    return remainder >= 0.5


def quantize_float_as_qtorch(x: Tensor, format: FloatFormat) -> Tensor:
    """Reproduces QPyTorch 0.3.0 in float32: its sums round, and NaN is handled as bits like any number."""
    dropped_bits = 23 - format.mantissa_bits
    half, kept_bits = 1 << (dropped_bits - 1), -1 << dropped_bits
    bits = x.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    shift = torch.where(bits >> 31 == 1, -format.min_normal, format.min_normal)

    def rounded(of: Tensor) -> Tensor:
        result = (of + half) & kept_bits & 0xFFFFFFFF
        return torch.where(result >> 31 == 1, result - 2**32, result).to(torch.int32).view(torch.float32)

    shifted = (x + shift.float()).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    subnormal = rounded(shifted) - shift.float()
    normal = rounded(bits)
    if not format.has_inf:
        exponent = (normal.view(torch.int32) >> 23) & 0xFF
        is_beyond = exponent > format.max_bits >> 23
        normal = torch.where(is_beyond, torch.where(bits >> 31 == 1, -format.max_value, format.max_value), normal)
    return torch.where((bits >> 23) & 0xFF < math.frexp(format.min_normal)[1] + 126, subnormal, normal.float())


def quantize_fixed(
    x: Tensor,
    word_length: int,
    fraction_length: int,
    rounding: Rounding,
    overflow: FixedOverflow,
    symmetric: bool,
    random: Tensor | None = None,
) -> Tensor:
    """Rounds to a multiple of ``2**-fraction_length``; scaling by a power of two is exact.

    ``random``: as for ``quantize_float``.
    """
    accumulate = torch.promote_types(x.dtype, torch.float32)
    scaled = x.to(accumulate) * 2.0**fraction_length
    if rounding == "qtorch":
        # the first sum rounds to x's dtype, the rest is computed in float64
        steps = ((scaled + 0.5).double() - 0.5).round()
    else:
        magnitude = scaled.abs().double()
        lower = magnitude.floor()
        remainder = torch.where(magnitude == torch.inf, 0.0, magnitude - lower)
        nearest = lower + _rounds_up(remainder, lower % 2 == 1, rounding, random)
        steps = torch.where(scaled < 0, -nearest, nearest) + 0.0  # there is no -0
    limit = 2.0 ** (word_length - 1)
    if overflow == "saturate":
        steps = steps.clamp(1 - limit if symmetric else -limit, limit - 1)
    elif overflow == "wrap":
        wrapped = torch.remainder(steps + limit, 2 * limit) - limit
        # beyond 2**53 steps the sum would round, but such numbers are multiples of every modulus
        wrapped = torch.where(steps.abs() < 2.0**48, wrapped, torch.remainder(steps, 2 * limit))
        finite = torch.where(steps.isinf() & x.isfinite(), 0.0, wrapped)
        return ((torch.where(x.isfinite(), finite, torch.nan) + 0.0) / 2.0**fraction_length).to(x.dtype)
    rounded = (steps / 2.0**fraction_length).to(accumulate)
    if overflow == "unbounded" and rounding != "qtorch":
        rounded = torch.where(scaled.isinf(), x.to(accumulate), rounded)
    return rounded.to(x.dtype)


def matmul_accumulate(
    x: Tensor,  # [..., K], float32
    w_NK: Tensor,  # float32
    accumulator: FloatFormat,
    chunk: int | None,
    rounding: Rounding,
) -> Tensor:
    """Returns x wᵀ with an accumulator that is rounded after each chunk, in ascending k."""
    depth = x.shape[-1]
    total = x.new_zeros((*x.shape[:-1], w_NK.shape[0]))
    for first in range(0, depth, chunk or max(depth, 1)):
        chunk_sum = torch.zeros_like(total)
        for k in range(first, min(first + (chunk or depth), depth)):
            chunk_sum = fused_multiply_add(x[..., k, None], w_NK[:, k], chunk_sum)
        total = quantize_float(total + chunk_sum, accumulator, rounding, accumulator.overflow)
    return total


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Returns a * b + c in float32 with one rounding.

    The product is exact in float64. The sum is rounded to odd there (its last bit tells that something was lost), so
    that rounding it once more, to float32, gives what one rounding would (Boldo and Melquiond, 2008).
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    virtual = total - product
    lost = (product - (total - virtual)) + (addend - virtual)
    bits = total.view(torch.int64)
    is_inexact = (lost != 0) & total.isfinite()
    toward_exact = torch.where((lost > 0) == (total > 0), bits + 1, bits - 1)
    odd = torch.where(is_inexact & (bits % 2 == 0), toward_exact, bits)
    return odd.view(torch.float64).to(torch.float32)


def upsample_relations(x_BHnn: Tensor, matrix_Nn: Tensor) -> Tensor:
    """Returns matrix x matrixᵀ, computed in float32, or in float64 for a float64 x."""
    precise = x_BHnn.dtype if x_BHnn.dtype == torch.float64 else torch.float32
    matrix_Nn = matrix_Nn.to(precise)
    # transposed twice: two plain GEMMs are faster than a batched one with the matrix on the left
    x_BHNn = (x_BHnn.to(precise).transpose(2, 3) @ matrix_Nn.t()).transpose(2, 3)
    return (x_BHNn @ matrix_Nn.t()).to(x_BHnn.dtype)
