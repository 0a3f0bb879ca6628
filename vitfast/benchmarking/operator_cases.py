"""The operators that are measured: vitfast's call, torch's way to the same result, and a bound where there is one.

Shapes: B batch, H heads, N tokens, D head dimension, C channels, F hidden (feed-forward) width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitfast import ops
from vitfast.errors import UserError
from vitfast.formats import FloatFormat
from vitfast.layers import GridUpsample
from vitfast.models.registry import resolve_name
from vitfast.models.vit_architectures import VIT_ARCHITECTURES
from vitfast.ops.library import has_kernel
from vitfast.ops.packed import has_packed

Function = Callable[..., tuple[Tensor, ...]]
Random = Callable[..., Tensor]


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
        """Takes them from an architecture.

        Args:
            name: of the model.
            batch: images in a run.
            heads: that share the model's channels; None: as many as the model has.

        Raises:
            UserError: there is no such ViT, or the heads do not share its channels evenly.
        """
        fields = VIT_ARCHITECTURES.get(resolve_name(name))
        if fields is None:
            raise UserError(f"model={name} is no plain ViT or DeiT, whose sizes the operators are measured at")
        heads = fields.num_heads if heads is None else heads
        if fields.embed_dim % heads:
            raise UserError(f"heads={heads} do not share the {fields.embed_dim} channels of model={name} evenly")
        tokens = fields.grid_size**2 + fields.num_prefix_positions
        return cls(batch, tokens, fields.embed_dim, heads, fields.mlp_dim)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.channels // self.heads

    def describe(self) -> str:
        """One phrase for the table."""
        return f"B={self.batch} N={self.tokens} C={self.channels} H={self.heads}"

    def labels(self) -> dict[str, int]:
        """The sizes but the batch, for programs."""
        return {name: size for name, size in asdict(self).items() if name != "batch"}


@dataclass(frozen=True)
class OperatorCase:
    """An operator with its inputs.

    Attributes:
        inputs: what every function takes.
        rivals: ``"vitfast"``, ``"torch"`` and others -> a function that returns the results as a tuple.
        limits: name -> a function that does less: a bound.
        is_memory_bound: its figure is GB/s: inputs read once, results written once.
    """

    inputs: tuple[Tensor, ...]
    rivals: dict[str, Function]
    limits: dict[str, Function] = field(default_factory=dict)
    is_memory_bound: bool = False


def _torch_attentions(device: torch.device, attention: Function) -> dict[str, Function]:
    """Torch's attention as it chooses by itself and, on a GPU, each of the implementations that it chooses from."""
    rivals = {"torch": attention}
    if device.type != "cuda":
        return rivals

    def with_backend(backend: SDPBackend) -> Function:
        def forced(*inputs: Tensor) -> tuple[Tensor, ...]:
            with sdpa_kernel(backend):
                return attention(*inputs)

        return forced

    rivals["torch cuDNN"] = with_backend(SDPBackend.CUDNN_ATTENTION)
    rivals["torch flash"] = with_backend(SDPBackend.FLASH_ATTENTION)
    rivals["torch efficient"] = with_backend(SDPBackend.EFFICIENT_ATTENTION)
    return rivals


def _attention(sizes: Sizes, random: Random) -> OperatorCase:
    shape_BHND = (sizes.batch, sizes.heads, sizes.tokens, sizes.head_dim)

    def own_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        out = ops.attention(q, k, v)
        assert isinstance(out, Tensor)
        return (out,)

    inputs = (random(*shape_BHND), random(*shape_BHND), random(*shape_BHND))
    torch_attentions = _torch_attentions(inputs[0].device, lambda q, k, v: (F.scaled_dot_product_attention(q, k, v),))
    return OperatorCase(inputs, rivals={"vitfast": own_attention, **torch_attentions})


def _torch_attention_packed(qkv: Tensor) -> tuple[Tensor]:
    q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
    return (F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).flatten(-2),)


def _attention_packed(sizes: Sizes, random: Random) -> OperatorCase:
    """From the one tensor that a linear layer writes to the one that the next linear layer reads, as in a block."""

    def own_attention(qkv: Tensor) -> tuple[Tensor]:
        out = ops.attention_packed(qkv)
        assert isinstance(out, Tensor)
        return (out.flatten(-2),)

    qkv = random(sizes.batch, sizes.tokens, 3, sizes.heads, sizes.head_dim)
    torch_attentions = _torch_attentions(qkv.device, _torch_attention_packed)
    return OperatorCase((qkv,), rivals={"vitfast": own_attention, **torch_attentions})


def _attention_with_bias(sizes: Sizes, random: Random) -> OperatorCase:
    """As in DVT: logits with a bias of their own for each image, which the next exit reads."""

    def own_attention(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, logits = ops.attention_packed(qkv, bias=bias, return_logits=True)
        return out.flatten(-2), logits

    def torch_attention(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
        logits = (q_BHND * sizes.head_dim**-0.5) @ k_BHND.mT + bias
        return (logits.softmax(-1) @ v_BHND).transpose(1, 2).flatten(-2), logits

    qkv = random(sizes.batch, sizes.tokens, 3, sizes.heads, sizes.head_dim)
    bias = random(sizes.batch, sizes.heads, sizes.tokens, sizes.tokens)
    return OperatorCase((qkv, bias), rivals={"vitfast": own_attention, "torch": torch_attention})


def _gated_positional_attention(sizes: Sizes, random: Random) -> OperatorCase:
    """ConViT's attention; torch's way is the sum of two attentions."""
    qkv = random(sizes.batch, sizes.tokens, 3, sizes.heads, sizes.head_dim)
    position = (3 * random(sizes.heads, sizes.tokens, sizes.tokens).float()).softmax(-1).to(qkv.dtype)
    gate = random(sizes.heads).float().sigmoid()

    def own_attention(qkv: Tensor, position: Tensor, gate: Tensor) -> tuple[Tensor]:
        return (ops.gated_positional_attention(qkv, position, gate).flatten(-2),)

    def torch_attention(qkv: Tensor, position: Tensor, gate: Tensor) -> tuple[Tensor]:
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
        content_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
        blended_BHND = torch.lerp(content_BHND, position @ v_BHND, gate[:, None, None].to(qkv.dtype))
        return (blended_BHND.transpose(1, 2).flatten(-2),)

    def content_alone(qkv: Tensor, *_: Tensor) -> tuple[Tensor]:
        out = ops.attention_packed(qkv)
        assert isinstance(out, Tensor)
        return (out.flatten(-2),)

    return OperatorCase(
        inputs=(qkv, position, gate),
        rivals={"vitfast": own_attention, **_torch_attentions(qkv.device, torch_attention)},
        limits={"attention without positions": content_alone},
    )


def _packed_attention(sizes: Sizes, random: Random) -> OperatorCase:
    """What accelerated models run, from qkv as ``_attention_packed``."""
    qkv = random(sizes.batch, sizes.tokens, 3, sizes.heads, sizes.head_dim)
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[qkv.dtype]
    q_BHND, k_BHND, v_BHND = (part.contiguous() for part in qkv.permute(2, 0, 3, 1, 4))

    def own_attention(qkv: Tensor) -> tuple[Tensor]:
        out: Tensor = torch.ops.vitfast.packed_attention.default(qkv, sizes.head_dim**-0.5, precision)
        return (out.flatten(-2),)

    return OperatorCase(
        inputs=(qkv,),
        rivals={"vitfast": own_attention, "torch": _torch_attention_packed},
        limits={"torch, q k v apart": lambda _: (F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND),)},
    )


def _layer_norm(sizes: Sizes, random: Random) -> OperatorCase:
    return OperatorCase(
        inputs=(random(sizes.batch, sizes.tokens, sizes.channels), random(sizes.channels), random(sizes.channels)),
        rivals={
            "vitfast": lambda x, weight, bias: (ops.layer_norm(x, weight, bias),),
            "torch": lambda x, weight, bias: (F.layer_norm(x, weight.shape, weight, bias),),
        },
        limits={"copy": lambda x, weight, bias: (x.clone(),)},
        is_memory_bound=True,
    )


def _add_layer_norm(sizes: Sizes, random: Random) -> OperatorCase:
    def torch_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        summed = x + residual
        return summed, F.layer_norm(summed, weight.shape, weight, bias)

    shape_BNC = (sizes.batch, sizes.tokens, sizes.channels)
    return OperatorCase(
        inputs=(random(*shape_BNC), random(*shape_BNC), random(sizes.channels), random(sizes.channels)),
        rivals={"vitfast": ops.add_layer_norm, "torch": torch_add_layer_norm},
        limits={"two copies": lambda x, residual, weight, bias: (x.clone(), residual.clone())},
        is_memory_bound=True,
    )


def _random_weight(random: Random, fan_out: int, fan_in: int) -> Tensor:
    """One that keeps the size of what it multiplies."""
    weight: Tensor = random(fan_out, fan_in)
    scaled: Tensor = weight.detach() * fan_in**-0.5
    return scaled.requires_grad_(weight.requires_grad)


def _mlp(sizes: Sizes, random: Random) -> OperatorCase:
    """The feed-forward half of a block with its residual."""
    x, residual = (random(sizes.batch, sizes.tokens, sizes.channels) for _ in range(2))
    fc1_weight = _random_weight(random, sizes.hidden, sizes.channels)
    fc2_weight = _random_weight(random, sizes.channels, sizes.hidden)

    def own_mlp(x: Tensor, residual: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor]:
        return (ops.mlp(x, w1, b1, w2, b2, residual=residual),)

    def torch_mlp(x: Tensor, residual: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor]:
        return (residual + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2),)

    return OperatorCase(
        inputs=(x, residual, fc1_weight, random(sizes.hidden), fc2_weight, random(sizes.channels)),
        rivals={"vitfast": own_mlp, "torch": torch_mlp},
    )


def _mlp_backward(sizes: Sizes, random: Random) -> OperatorCase:
    """The backward of the MLP alone: four products, GELU's derivative and the sums for two biases."""
    grad, x = (random(sizes.batch, sizes.tokens, sizes.channels) for _ in range(2))
    fc1_weight = _random_weight(random, sizes.hidden, sizes.channels)
    fc2_weight = _random_weight(random, sizes.channels, sizes.hidden)
    pre_activation = F.linear(x, fc1_weight, random(sizes.hidden))

    def own_backward(
        grad: Tensor, x: Tensor, pre_activation: Tensor, activation: Tensor, w1: Tensor, w2: Tensor
    ) -> tuple[Tensor, ...]:
        kept = activation if x.is_cuda else None
        grads = torch.ops.vitfast.mlp_backward.default(grad, x, pre_activation, kept, w1, w2, "none", True, True)
        return tuple(grads)

    def products(grad: Tensor, grad_hidden: Tensor, x: Tensor, activation: Tensor, w1: Tensor) -> tuple[Tensor, ...]:
        rows, hidden_rows = grad.flatten(0, -2), grad_hidden.flatten(0, -2)
        return grad_hidden @ w1, hidden_rows.T @ x.flatten(0, -2), rows.T @ activation.flatten(0, -2)

    def torch_backward(
        grad: Tensor, x: Tensor, pre_activation: Tensor, activation: Tensor, w1: Tensor, w2: Tensor
    ) -> tuple[Tensor, ...]:
        grad_hidden: Tensor = torch.ops.aten.gelu_backward.default(grad @ w2, pre_activation)
        grad_x, grad_w1, grad_w2 = products(grad, grad_hidden, x, activation, w1)
        return grad_x, grad_w1, grad_hidden.flatten(0, -2).sum(0), grad_w2, grad.flatten(0, -2).sum(0)

    def products_alone(
        grad: Tensor, x: Tensor, pre_activation: Tensor, activation: Tensor, w1: Tensor, w2: Tensor
    ) -> tuple[Tensor, ...]:
        return products(grad, grad @ w2, x, activation, w1)

    return OperatorCase(
        inputs=(grad, x, pre_activation, F.gelu(pre_activation), fc1_weight, fc2_weight),
        rivals={"vitfast": own_backward, "torch": torch_backward},
        limits={"products alone": products_alone},
    )


def _linear(*, widens: bool) -> Callable[[Sizes, Random], OperatorCase]:
    """A product with what follows it: the MLP's first with GELU, or its second with the residual."""

    def make(sizes: Sizes, random: Random) -> OperatorCase:
        fan_in, fan_out = (sizes.channels, sizes.hidden) if widens else (sizes.hidden, sizes.channels)
        x, residual = random(sizes.batch, sizes.tokens, fan_in), random(sizes.batch, sizes.tokens, fan_out)
        weight = _random_weight(random, fan_out, fan_in)
        inputs = (x, weight, random(fan_out))
        if widens:
            return OperatorCase(
                inputs,
                rivals={
                    "vitfast": lambda x, weight, bias: (ops.linear(x, weight, bias, activation="gelu"),),
                    "torch": lambda x, weight, bias: (F.gelu(F.linear(x, weight, bias)),),
                },
                limits={"product alone": lambda x, weight, bias: (F.linear(x, weight, bias),)},
            )
        return OperatorCase(
            inputs=(*inputs, residual),
            rivals={
                "vitfast": lambda x, weight, bias, residual: (ops.linear(x, weight, bias, residual=residual),),
                "torch": lambda x, weight, bias, residual: (residual + F.linear(x, weight, bias),),
            },
            limits={"product alone": lambda x, weight, bias, residual: (F.linear(x, weight, bias),)},
        )

    return make


def _quantize_float(float_format: FloatFormat, dtype: torch.dtype) -> Callable[[Sizes, Random], OperatorCase]:
    """Rounding of an activation; torch can do it for the few formats that it stores, by going there and back."""

    def make(sizes: Sizes, random: Random) -> OperatorCase:
        return OperatorCase(
            inputs=(random(sizes.batch, sizes.tokens, sizes.channels),),
            rivals={
                "vitfast": lambda x: (ops.quantize_float(x, float_format),),
                "torch": lambda x: (x.to(dtype).to(x.dtype),),
            },
            limits={"copy": lambda x: (x.clone(),)},
            is_memory_bound=True,
        )

    return make


def _quantize_fixed(sizes: Sizes, random: Random) -> OperatorCase:
    """Rounding of an activation to whole multiples of 1/512, of 11 bits."""
    return OperatorCase(
        inputs=(random(sizes.batch, sizes.tokens, sizes.channels),),
        rivals={
            "vitfast": lambda x: (ops.quantize_fixed(x, 11, 9),),
            "torch": lambda x: ((x * 512.0).round().clamp(-1024.0, 1023.0) / 512.0,),
        },
        limits={"copy": lambda x: (x.clone(),)},
        is_memory_bound=True,
    )


def _matmul_accumulate(sizes: Sizes, random: Random) -> OperatorCase:
    """Attention's last product, its sum rounded to float16 after every 16 products."""
    chunk = 16
    accumulator = FloatFormat.fp16()

    def torch_matmul_accumulate(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        total = x.new_zeros(*x.shape[:-1], weight.shape[0])
        for part, weight_part in zip(x.split(chunk, -1), weight.split(chunk, -1), strict=True):
            total = (total + part @ weight_part.t()).half().to(x.dtype)
        return (total,)

    x, weight = random(sizes.batch, sizes.tokens, sizes.channels), random(sizes.channels, sizes.channels)
    return OperatorCase(
        inputs=(x, weight * sizes.channels**-0.5),
        rivals={
            "vitfast": lambda x, weight: (ops.matmul_accumulate(x, weight, accumulator, chunk),),
            "torch": torch_matmul_accumulate,
        },
        limits={"product alone": lambda x, weight: (x @ weight.t(),)},
    )


def _matmul_half_sums(sizes: Sizes, random: Random) -> OperatorCase:
    """The same product with float16 sums on tensor cores, promoted to float32 after every 64 products."""
    x, weight = random(sizes.batch, sizes.tokens, sizes.channels), random(sizes.channels, sizes.channels)

    def own(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (ops.matmul_accumulate(x, weight, FloatFormat.ieee(8, 23), 64, unit="tensor_core"),)

    def with_float16_sums(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        before = torch.backends.cuda.matmul.allow_fp16_accumulation
        torch.backends.cuda.matmul.allow_fp16_accumulation = True
        try:
            return (x @ weight.t(),)
        finally:
            torch.backends.cuda.matmul.allow_fp16_accumulation = before

    return OperatorCase(
        inputs=(x, weight * sizes.channels**-0.5),
        rivals={
            "vitfast": own,
            "torch": lambda x, weight: (x @ weight.t(),),
            "torch, float16 sums": with_float16_sums,
        },
    )


def _upsample_relations(sizes: Sizes, random: Random) -> OperatorCase:
    """From the grid of DVT's exit before to that of the model: from 10 to 14."""
    fine = math.isqrt(sizes.tokens - 1)
    upsample = GridUpsample(max(fine * 5 // 7, 1), fine).matrix
    x = random(sizes.batch, sizes.heads, upsample.shape[1], upsample.shape[1])
    matrix = upsample.to(x.device)

    def torch_upsample(x: Tensor) -> tuple[Tensor]:
        columns = matrix.t().to(x.dtype)
        return ((x.mT @ columns).mT @ columns,)

    return OperatorCase(
        inputs=(x,),
        rivals={"vitfast": lambda x: (ops.upsample_relations(x, matrix),), "torch": torch_upsample},
        is_memory_bound=True,
    )


MLP_BACKWARD = "mlp backward"  # measured without its forward
TENSOR_CORE_SUMS = "matmul_accumulate on tensor cores"

OPERATORS: dict[str, Callable[[Sizes, Random], OperatorCase]] = {
    "attention": _attention,
    "attention_packed": _attention_packed,
    "attention with bias": _attention_with_bias,
    "gated_positional_attention": _gated_positional_attention,
    "packed_attention": _packed_attention,
    "layer_norm": _layer_norm,
    "add_layer_norm": _add_layer_norm,
    "linear with gelu": _linear(widens=True),
    "linear with residual": _linear(widens=False),
    "mlp": _mlp,
    MLP_BACKWARD: _mlp_backward,
    "quantize_float to fp16": _quantize_float(FloatFormat.fp16(), torch.float16),
    "quantize_float to fp8_e4m3fn": _quantize_float(FloatFormat.fp8_e4m3fn(), torch.float8_e4m3fn),
    "quantize_fixed": _quantize_fixed,
    "matmul_accumulate": _matmul_accumulate,
    TENSOR_CORE_SUMS: _matmul_half_sums,
    "upsample_relations": _upsample_relations,
}


def sizes_of_case(name: str, sizes: Sizes) -> Sizes:
    """The sizes that an operator of ``OPERATORS`` is measured at: ConViT's attention by position knows patches only."""
    if name == "gated_positional_attention":
        return replace(sizes, tokens=math.isqrt(sizes.tokens) ** 2)
    return sizes


def has_case(name: str, precision: str, device: torch.device, *, backward: bool) -> bool:
    """Whether an operator of ``OPERATORS`` can be measured in this precision and, if asked for, with its gradient."""
    if name.startswith("quantize_") or name == "matmul_accumulate":
        return precision == "fp32" and not backward
    if name == TENSOR_CORE_SUMS:
        return device.type == "cuda" and has_kernel("matmul_half_sums", "cuda") and precision == "fp16" and not backward
    if name == MLP_BACKWARD:
        is_cuda = device.type == "cuda"
        has_it = has_kernel("linear", "cuda") and precision in ("bf16", "fp16") if is_cuda else has_kernel("mlp", "cpu")
        return has_it and not backward
    if name == "gated_positional_attention":
        return not backward
    if name == "packed_attention":
        return precision in ("fp32", "bf16") and not backward and has_packed(name, device.type)
    return True
