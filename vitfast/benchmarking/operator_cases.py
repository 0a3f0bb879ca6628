"""Single operators: vitfast's, torch's equivalent, and lower bounds.

A new operator is one entry of ``OPERATORS``. Shapes: B batch, H heads, N tokens, D head dimension, C channels, F hidden
(feed-forward) width, n tokens of the previous exit's grid; P is the matrix [N, n] that upsamples that grid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel

Function = Callable[..., Any]  # returns a tensor or a tuple of tensors


@dataclass(frozen=True)
class Operator:
    """Functions that take the same inputs."""

    kernel: str  # the kernel of vitfast that runs, a key of ``build_info()["kernels"]``
    inputs: str  # the shapes of random tensors, in letters; and P
    vitfast: Function
    by_torch: Function
    limits: Mapping[str, Function] = field(default_factory=dict)  # lower bounds
    others: Mapping[str, Function] = field(default_factory=dict)  # further ways in torch
    precisions: Collection[str] = ("fp32", "bf16", "fp16")
    has_backward: bool = True  # forward and backward can be measured together
    backward_alone: bool = False  # measure the backward pass without the forward pass
    is_available: Callable[[torch.device], bool] = lambda device: True
    is_attention: bool = False  # measure each of torch's attention backends
    is_memory_bound: bool = False  # report GB/s: inputs are read once, results written once
    patches_only: bool = False  # measured without the class token
    is_exact: bool = False  # results are the same bits on every device


def _attention_from_qkv(qkv: Tensor, *_: Tensor) -> Tensor:
    out = ops.attention_packed(qkv)
    assert isinstance(out, Tensor)
    return out.flatten(-2)


def _torch_attention_from_qkv(qkv: Tensor) -> Tensor:
    q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).flatten(-2)


def _contiguous_attention(qkv: Tensor) -> Tensor:
    """Attention of the same size, with other q, k, v."""
    batch, tokens, _, heads, head_dim = qkv.shape
    return F.scaled_dot_product_attention(*qkv.view(3, batch, heads, tokens, head_dim))


def _attention_with_bias(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    out, logits = ops.attention_packed(qkv, bias=bias, return_logits=True)
    return out.flatten(-2), logits


def _torch_attention_with_bias(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
    logits = (q_BHND * qkv.shape[-1] ** -0.5) @ k_BHND.mT + bias
    return (logits.softmax(-1) @ v_BHND).transpose(1, 2).flatten(-2), logits


def _torch_gated_attention(qkv: Tensor, position: Tensor, gate: Tensor) -> Tensor:
    q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
    content_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
    blended_BHND = torch.lerp(content_BHND, position @ v_BHND, gate[:, None, None])
    return blended_BHND.transpose(1, 2).flatten(-2)


def _packed_attention(qkv: Tensor) -> Tensor:
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[qkv.dtype]
    out: Tensor = torch.ops.vitfast.packed_attention.default(qkv, qkv.shape[-1] ** -0.5, precision)
    return out.flatten(-2)


def _torch_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    summed = x + residual
    return summed, F.layer_norm(summed, weight.shape, weight, bias)


def _add_layer_norm_of_autocast(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return ops.add_layer_norm(x, _widened(residual), _widened(weight), _widened(bias), out_dtype=x.dtype)


def _torch_add_layer_norm_of_autocast(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    summed, y = _torch_add_layer_norm(x, _widened(residual), _widened(weight), _widened(bias))
    return summed, y.to(x.dtype)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _torch_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def _mlp_backward_gemms(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """The four GEMMs of the backward pass, with x in place of the output's gradient."""
    grad_hidden = x @ w2
    rows, hidden_rows = x.flatten(0, -2), grad_hidden.flatten(0, -2)
    return grad_hidden @ w1, hidden_rows.T @ rows, rows.T @ hidden_rows


def _torch_matmul_accumulate(x: Tensor, weight: Tensor) -> Tensor:
    total = x.new_zeros(*x.shape[:-1], weight.shape[0])
    for part, weight_part in zip(torch.split(x, 16, -1), torch.split(weight, 16, -1), strict=True):
        total = (total + part @ weight_part.t()).half().to(x.dtype)
    return total


def _with_fp16_accumulation(x: Tensor, weight: Tensor) -> Tensor:
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    try:
        return x @ weight.t()
    finally:
        torch.backends.cuda.matmul.allow_fp16_accumulation = before


def _torch_upsample(x: Tensor, matrix: Tensor) -> Tensor:
    columns = matrix.t().to(x.dtype)
    return (x.mT @ columns).mT @ columns


_rounding = partial(
    Operator,
    inputs="BNC",
    limits={"copy": torch.clone},
    precisions=("fp32",),
    has_backward=False,
    is_memory_bound=True,
    is_exact=True,
)

OPERATORS: dict[str, Operator] = {
    "attention": Operator(
        "attention", "BHND BHND BHND", ops.attention, F.scaled_dot_product_attention, is_attention=True
    ),
    # from the output of attention's first linear layer to the input of its second, as in a block
    "attention_packed": Operator(
        "attention", "BN3HD", _attention_from_qkv, _torch_attention_from_qkv, is_attention=True
    ),
    # as in DVT: each image adds a different bias to the logits, and the next exit reads them
    "attention with bias": Operator("attention", "BN3HD BHNN", _attention_with_bias, _torch_attention_with_bias),
    # ConViT's attention; in torch the sum of two attentions
    "gated_positional_attention": Operator(
        "gated_positional_attention",
        "BN3HD HNN H",
        lambda *inputs: ops.gated_positional_attention(*inputs).flatten(-2),
        _torch_gated_attention,
        limits={"attention without positions": _attention_from_qkv},
        has_backward=False,
        is_attention=True,
        patches_only=True,
    ),
    # the attention of accelerated models
    "packed_attention": Operator(
        "packed",
        "BN3HD",
        _packed_attention,
        _torch_attention_from_qkv,
        limits={"torch, q k v apart": _contiguous_attention},
        precisions=("fp32", "bf16"),
        has_backward=False,
        is_available=lambda device: has_kernel("packed", device.type),
    ),
    "layer_norm": Operator(
        "layer_norm",
        "BNC C C",
        lambda *inputs: ops.layer_norm(*inputs),
        lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias),
        limits={"copy": lambda x, *_: x.clone()},
        is_memory_bound=True,
    ),
    "add_layer_norm": Operator(
        "layer_norm",
        "BNC BNC C C",
        ops.add_layer_norm,
        _torch_add_layer_norm,
        limits={"two copies": lambda x, residual, *_: (x.clone(), residual.clone())},
        is_memory_bound=True,
    ),
    "add_layer_norm of autocast": Operator(  # a residual stream of float32
        "layer_norm",
        "BNC BNC C C",
        _add_layer_norm_of_autocast,
        _torch_add_layer_norm_of_autocast,
        limits={"two copies": lambda x, residual, *_: (x.clone(), _widened(residual).clone())},
        is_memory_bound=True,
    ),
    "linear with gelu": Operator(
        "linear",
        "BNC FC F",
        lambda x, weight, bias: ops.linear(x, weight, bias, activation="gelu"),
        lambda x, weight, bias: F.gelu(F.linear(x, weight, bias)),
        limits={"product alone": F.linear},
    ),
    "linear with scale and residual": Operator(
        "linear",
        "BNF CF C C BNC",
        lambda x, weight, bias, scale, residual: ops.linear(x, weight, bias, scale=scale, residual=residual),
        lambda x, weight, bias, scale, residual: residual + scale * F.linear(x, weight, bias),
        limits={"product alone": lambda x, weight, bias, *_: F.linear(x, weight, bias)},
    ),
    # the feed-forward half of a block, with its residual
    "mlp": Operator(
        "mlp",
        "BNC BNC FC F CF C",
        lambda x, residual, *weights: ops.mlp(x, *weights, residual=residual),
        lambda x, residual, *weights: residual + _torch_mlp(x, *weights),
    ),
    "mlp backward": Operator(
        "mlp",
        "BNC FC F CF C",
        lambda *inputs: ops.mlp(*inputs),
        _torch_mlp,
        limits={"products alone": _mlp_backward_gemms},
        has_backward=False,
        backward_alone=True,
    ),
    # torch rounds to the formats that it can store, by conversion to them and back
    "quantize_float to fp16": _rounding(
        "quantize_float",
        vitfast=lambda x: ops.quantize_float(x, FloatFormat.fp16()),
        by_torch=lambda x: x.half().to(x.dtype),
    ),
    "quantize_float to fp8_e4m3fn": _rounding(
        "quantize_float",
        vitfast=lambda x: ops.quantize_float(x, FloatFormat.fp8_e4m3fn()),
        by_torch=lambda x: x.to(torch.float8_e4m3fn).to(x.dtype),
    ),
    # multiples of 1/512, in 11 bits
    "quantize_fixed": _rounding(
        "quantize_fixed",
        vitfast=lambda x: ops.quantize_fixed(x, 11, 9),
        by_torch=lambda x: (x * 512.0).round().clamp(-1024.0, 1023.0) / 512.0,
    ),
    # attention's output projection, with the sum rounded to float16 after every 16 multiply-adds
    "matmul_accumulate": Operator(
        "matmul_accumulate",
        "BNC CC",
        lambda x, weight: ops.matmul_accumulate(x, weight, FloatFormat.fp16(), 16),
        _torch_matmul_accumulate,
        limits={"product alone": F.linear},
        precisions=("fp32",),
        has_backward=False,
        is_exact=True,
    ),
    # the same GEMM with float16 accumulators, promoted to float32 after every 64 multiply-adds
    "matmul_accumulate on tensor cores": Operator(
        "matmul_fp16_accumulation",
        "BNC CC",
        lambda x, weight: ops.matmul_accumulate(x, weight, FloatFormat.ieee(8, 23), 64, unit="tensor_core"),
        F.linear,
        others={"torch, float16 sums": _with_fp16_accumulation},
        precisions=("fp16",),
        has_backward=False,
        is_available=lambda device: device.type == "cuda" and has_kernel("matmul_fp16_accumulation", "cuda"),
    ),
    # from the grid of DVT's previous exit to the model's: 10 to 14
    "upsample_relations": Operator(
        "upsample_relations", "BHnn P", ops.upsample_relations, _torch_upsample, is_memory_bound=True
    ),
}
