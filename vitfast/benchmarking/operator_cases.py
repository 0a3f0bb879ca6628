"""Single operators at the shapes of a model: vitfast's operator, torch's equivalent, and a lower bound if there is one.

A new operator is one decorated function in this file. Shapes: B batch, H heads, N tokens, D head dimension, C channels,
F hidden (feed-forward) width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfast import ops
from vitfast.errors import UserError
from vitfast.formats import FloatFormat
from vitfast.layers import GridUpsample
from vitfast.models.registry import resolve_name
from vitfast.models.vit import VIT_ARCHITECTURES
from vitfast.ops.library import has_kernel

Function = Callable[..., Any]  # returns a tensor or a tuple of tensors
Random = Callable[..., Tensor]  # takes a shape


@dataclass(frozen=True)
class Sizes:
    """The sizes that a model gives its operators."""

    batch: int
    tokens: int
    channels: int
    heads: int
    hidden: int

    @classmethod
    def of_model(cls, name: str, batch: int, heads: int | None = None) -> Sizes:
        """Returns the sizes of a ViT or DeiT; ``heads`` replaces its number of heads.

        Raises:
            UserError: there is no such ViT, or ``heads`` does not divide its channels.
        """
        fields = VIT_ARCHITECTURES.get(resolve_name(name))
        if fields is None:
            raise UserError(f"model={name} is not a plain ViT or DeiT, whose sizes the operators are measured at")
        heads = fields.num_heads if heads is None else heads
        if fields.embed_dim % heads:
            raise UserError(f"heads={heads} does not divide the {fields.embed_dim} channels of model={name}")
        tokens = fields.grid_size**2 + fields.num_prefix_positions
        return cls(batch, tokens, fields.embed_dim, heads, fields.mlp_dim)

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.channels // self.heads

    @property
    def x(self) -> tuple[int, int, int]:
        """``[B, N, C]``."""
        return self.batch, self.tokens, self.channels

    @property
    def qkv(self) -> tuple[int, int, int, int, int]:
        """``[B, N, 3, H, D]``, the output of attention's first linear layer."""
        return self.batch, self.tokens, 3, self.heads, self.head_dim


@dataclass(frozen=True)
class Calls:
    """An operator's inputs, the two functions that are compared, and lower bounds; all functions take the inputs."""

    inputs: tuple[Tensor, ...]
    vitfast: Function
    torch: Function
    limits: dict[str, Function] = field(default_factory=dict)
    other: dict[str, Function] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """An entry of ``OPERATORS``.

    Attributes:
        make: draws the inputs.
        precisions: the precisions that can be measured.
        has_backward: whether forward and backward can be measured together.
        is_available: whether the operator can be measured on a device in a precision.
        is_attention: measure each of torch's attention backends.
        is_memory_bound: report GB/s: inputs are read once, results written once.
        patches_only: measured without the class token.
        direction: what is measured.
    """

    make: Callable[[Sizes, Random], Calls]
    precisions: Collection[str] = ("fp32", "bf16", "fp16")
    has_backward: bool = True
    is_available: Callable[[torch.device, str], bool] = lambda device, precision: True
    is_attention: bool = False
    is_memory_bound: bool = False
    patches_only: bool = False
    direction: str = "forward"


OPERATORS: dict[str, Operator] = {}


def _operator(name: str, **properties: Any) -> Callable[[Callable[[Sizes, Random], Calls]], None]:
    """Adds a function that makes ``Calls`` to ``OPERATORS``; see ``Operator`` for the properties."""

    def add(make: Callable[[Sizes, Random], Calls]) -> None:
        OPERATORS[name] = Operator(make, **properties)

    return add


def _copy(x: Tensor, *_: Tensor) -> Tensor:
    return x.clone()


def _attention_from_qkv(qkv: Tensor, *_: Tensor) -> Tensor:
    out = ops.attention_packed(qkv)
    assert isinstance(out, Tensor)
    return out.flatten(-2)


def _torch_attention_from_qkv(qkv: Tensor) -> Tensor:
    q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).flatten(-2)


@_operator("attention", is_attention=True)
def _(sizes: Sizes, random: Random) -> Calls:
    shape_BHND = (sizes.batch, sizes.heads, sizes.tokens, sizes.head_dim)
    inputs = (random(*shape_BHND), random(*shape_BHND), random(*shape_BHND))
    return Calls(inputs, ops.attention, F.scaled_dot_product_attention)


@_operator("attention_packed", is_attention=True)
def _(sizes: Sizes, random: Random) -> Calls:
    """From the output of attention's first linear layer to the input of its second, as in a block."""
    return Calls((random(*sizes.qkv),), _attention_from_qkv, _torch_attention_from_qkv)


@_operator("attention with bias")
def _(sizes: Sizes, random: Random) -> Calls:
    """As in DVT: each image adds a different bias to the logits, and the next exit reads them."""

    def vitfast_attention(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, logits = ops.attention_packed(qkv, bias=bias, return_logits=True)
        return out.flatten(-2), logits

    def torch_attention(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
        logits = (q_BHND * sizes.head_dim**-0.5) @ k_BHND.mT + bias
        return (logits.softmax(-1) @ v_BHND).transpose(1, 2).flatten(-2), logits

    bias_shape = (sizes.batch, sizes.heads, sizes.tokens, sizes.tokens)
    return Calls((random(*sizes.qkv), random(*bias_shape)), vitfast_attention, torch_attention)


@_operator("gated_positional_attention", is_attention=True, has_backward=False, patches_only=True)
def _(sizes: Sizes, random: Random) -> Calls:
    """ConViT's attention; in torch the sum of two attentions."""
    qkv = random(*sizes.qkv)
    position = (3 * random(sizes.heads, sizes.tokens, sizes.tokens).float()).softmax(-1).to(qkv.dtype)
    gate = random(sizes.heads).float().sigmoid()

    def torch_attention(qkv: Tensor, position: Tensor, gate: Tensor) -> Tensor:
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
        content_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
        blended_BHND = torch.lerp(content_BHND, position @ v_BHND, gate[:, None, None].to(qkv.dtype))
        return blended_BHND.transpose(1, 2).flatten(-2)

    return Calls(
        (qkv, position, gate),
        vitfast=lambda *inputs: ops.gated_positional_attention(*inputs).flatten(-2),
        torch=torch_attention,
        limits={"attention without positions": _attention_from_qkv},
    )


@_operator(
    "packed_attention",
    precisions=("fp32", "bf16"),
    has_backward=False,
    is_available=lambda device, precision: has_kernel("packed", device.type),
)
def _(sizes: Sizes, random: Random) -> Calls:
    """The attention of accelerated models."""
    qkv = random(*sizes.qkv)
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[qkv.dtype]
    q_BHND, k_BHND, v_BHND = (part.contiguous() for part in qkv.permute(2, 0, 3, 1, 4))
    packed_attention = torch.ops.vitfast.packed_attention.default
    return Calls(
        (qkv,),
        vitfast=lambda qkv: packed_attention(qkv, sizes.head_dim**-0.5, precision).flatten(-2),
        torch=_torch_attention_from_qkv,
        limits={"torch, q k v apart": lambda _: F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)},
    )


@_operator("layer_norm", is_memory_bound=True)
def _(sizes: Sizes, random: Random) -> Calls:
    return Calls(
        (random(*sizes.x), random(sizes.channels), random(sizes.channels)),
        vitfast=lambda *inputs: ops.layer_norm(*inputs),
        torch=lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias),
        limits={"copy": _copy},
    )


@_operator("add_layer_norm", is_memory_bound=True)
def _(sizes: Sizes, random: Random) -> Calls:
    def torch_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        summed = x + residual
        return summed, F.layer_norm(summed, weight.shape, weight, bias)

    return Calls(
        (random(*sizes.x), random(*sizes.x), random(sizes.channels), random(sizes.channels)),
        vitfast=ops.add_layer_norm,
        torch=torch_add_layer_norm,
        limits={"two copies": lambda x, residual, *_: (x.clone(), residual.clone())},
    )


def _weight(random: Random, fan_out: int, fan_in: int) -> Tensor:
    """A random weight that preserves the scale of its input."""
    weight = random(fan_out, fan_in)
    scaled: Tensor = weight.detach() * fan_in**-0.5
    return scaled.requires_grad_(weight.requires_grad)


@_operator("linear with gelu")
def _(sizes: Sizes, random: Random) -> Calls:
    return Calls(
        (random(*sizes.x), _weight(random, sizes.hidden, sizes.channels), random(sizes.hidden)),
        vitfast=lambda x, weight, bias: ops.linear(x, weight, bias, activation="gelu"),
        torch=lambda x, weight, bias: F.gelu(F.linear(x, weight, bias)),
        limits={"product alone": F.linear},
    )


@_operator("linear with residual")
def _(sizes: Sizes, random: Random) -> Calls:
    x, weight = random(sizes.batch, sizes.tokens, sizes.hidden), _weight(random, sizes.channels, sizes.hidden)
    return Calls(
        (x, weight, random(sizes.channels), random(*sizes.x)),
        vitfast=lambda x, weight, bias, residual: ops.linear(x, weight, bias, residual=residual),
        torch=lambda x, weight, bias, residual: residual + F.linear(x, weight, bias),
        limits={"product alone": lambda x, weight, bias, residual: F.linear(x, weight, bias)},
    )


def _mlp_weights(sizes: Sizes, random: Random) -> tuple[Tensor, Tensor]:
    return _weight(random, sizes.hidden, sizes.channels), _weight(random, sizes.channels, sizes.hidden)


@_operator("mlp")
def _(sizes: Sizes, random: Random) -> Calls:
    """The feed-forward half of a block, with its residual."""
    w1, w2 = _mlp_weights(sizes, random)
    return Calls(
        (random(*sizes.x), random(*sizes.x), w1, random(sizes.hidden), w2, random(sizes.channels)),
        vitfast=lambda x, residual, w1, b1, w2, b2: ops.mlp(x, w1, b1, w2, b2, residual=residual),
        torch=lambda x, residual, w1, b1, w2, b2: residual + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2),
    )


def _has_mlp_backward(device: torch.device, precision: str) -> bool:
    if device.type == "cuda":
        return has_kernel("linear", "cuda") and precision in ("bf16", "fp16")
    return has_kernel("mlp", "cpu")


@_operator("mlp backward", has_backward=False, is_available=_has_mlp_backward, direction="alone")
def _(sizes: Sizes, random: Random) -> Calls:
    """The backward pass of the MLP without its forward: four GEMMs, GELU's derivative and the sums for two biases."""
    grad, x = random(*sizes.x), random(*sizes.x)
    w1, w2 = _mlp_weights(sizes, random)
    pre_activation = F.linear(x, w1, random(sizes.hidden))
    mlp_backward = torch.ops.vitfast.mlp_backward.default

    def gemms(grad: Tensor, grad_hidden: Tensor, x: Tensor, hidden: Tensor, w1: Tensor) -> tuple[Tensor, ...]:
        rows, hidden_rows = grad.flatten(0, -2), grad_hidden.flatten(0, -2)
        return grad_hidden @ w1, hidden_rows.T @ x.flatten(0, -2), rows.T @ hidden.flatten(0, -2)

    def torch_backward(grad: Tensor, x: Tensor, pre_activation: Tensor, hidden: Tensor, *weights: Tensor) -> Any:
        w1, w2 = weights
        grad_hidden = torch.ops.aten.gelu_backward.default(grad @ w2, pre_activation)
        grad_x, grad_w1, grad_w2 = gemms(grad, grad_hidden, x, hidden, w1)
        return grad_x, grad_w1, grad_hidden.flatten(0, -2).sum(0), grad_w2, grad.flatten(0, -2).sum(0)

    return Calls(
        (grad, x, pre_activation, F.gelu(pre_activation), w1, w2),
        vitfast=lambda grad, x, pre_activation, hidden, w1, w2: mlp_backward(
            grad, x, pre_activation, hidden if x.is_cuda else None, w1, w2, "none", True, True
        ),
        torch=torch_backward,
        limits={"products alone": lambda grad, x, _, hidden, w1, w2: gemms(grad, grad @ w2, x, hidden, w1)},
    )


def _rounding(name: str, vitfast_rounding: Function, torch_rounding: Function) -> None:
    @_operator(name, precisions=("fp32",), has_backward=False, is_memory_bound=True)
    def _(sizes: Sizes, random: Random) -> Calls:
        return Calls((random(*sizes.x),), vitfast_rounding, torch_rounding, limits={"copy": _copy})


# torch rounds to the formats that it can store, by conversion to them and back
_rounding(
    "quantize_float to fp16",
    lambda x: ops.quantize_float(x, FloatFormat.fp16()),
    lambda x: x.half().to(x.dtype),
)
_rounding(
    "quantize_float to fp8_e4m3fn",
    lambda x: ops.quantize_float(x, FloatFormat.fp8_e4m3fn()),
    lambda x: x.to(torch.float8_e4m3fn).to(x.dtype),
)
_rounding(  # multiples of 1/512, in 11 bits
    "quantize_fixed",
    lambda x: ops.quantize_fixed(x, 11, 9),
    lambda x: (x * 512.0).round().clamp(-1024.0, 1023.0) / 512.0,
)


@_operator("matmul_accumulate", precisions=("fp32",), has_backward=False)
def _(sizes: Sizes, random: Random) -> Calls:
    """Attention's output projection, with the sum rounded to float16 after every 16 multiply-adds."""

    def torch_matmul_accumulate(x: Tensor, weight: Tensor) -> Tensor:
        total = x.new_zeros(*x.shape[:-1], weight.shape[0])
        for part, weight_part in zip(torch.split(x, 16, -1), torch.split(weight, 16, -1), strict=True):
            total = (total + part @ weight_part.t()).half().to(x.dtype)
        return total

    return Calls(
        (random(*sizes.x), _weight(random, sizes.channels, sizes.channels)),
        vitfast=lambda x, weight: ops.matmul_accumulate(x, weight, FloatFormat.fp16(), 16),
        torch=torch_matmul_accumulate,
        limits={"product alone": F.linear},
    )


@_operator(
    "matmul_accumulate on tensor cores",
    precisions=("fp16",),
    has_backward=False,
    is_available=lambda device, precision: device.type == "cuda" and has_kernel("matmul_half_sums", "cuda"),
)
def _(sizes: Sizes, random: Random) -> Calls:
    """The same GEMM with float16 accumulators on tensor cores, promoted to float32 after every 64 multiply-adds."""

    def with_fp16_accumulation(x: Tensor, weight: Tensor) -> Tensor:
        before = torch.backends.cuda.matmul.allow_fp16_accumulation
        torch.backends.cuda.matmul.allow_fp16_accumulation = True
        try:
            return x @ weight.t()
        finally:
            torch.backends.cuda.matmul.allow_fp16_accumulation = before

    return Calls(
        (random(*sizes.x), _weight(random, sizes.channels, sizes.channels)),
        vitfast=lambda x, w: ops.matmul_accumulate(x, w, FloatFormat.ieee(8, 23), 64, unit="tensor_core"),
        torch=F.linear,
        other={"torch, float16 sums": with_fp16_accumulation},
    )


@_operator("upsample_relations", is_memory_bound=True)
def _(sizes: Sizes, random: Random) -> Calls:
    """From the grid of DVT's previous exit to the model's: 10 to 14."""
    fine = math.isqrt(sizes.tokens - 1)
    upsample = GridUpsample(max(fine * 5 // 7, 1), fine).matrix
    x = random(sizes.batch, sizes.heads, upsample.shape[1], upsample.shape[1])
    matrix = upsample.to(x.device)

    def torch_upsample(x: Tensor) -> Tensor:
        columns = matrix.t().to(x.dtype)
        return (x.mT @ columns).mT @ columns

    return Calls((x,), vitfast=lambda x: ops.upsample_relations(x, matrix), torch=torch_upsample)
