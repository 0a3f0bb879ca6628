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
from vitfast.models.registry import resolve_name
from vitfast.models.vit_architectures import VIT_ARCHITECTURES
from vitfast.ops.packed import has_packed
from vitfast.quantization import FloatFormat

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
    def of_model(cls, name: str, batch: int) -> Sizes:
        """Takes them from an architecture.

        Raises:
            UserError: there is no such ViT.
        """
        fields = VIT_ARCHITECTURES.get(resolve_name(name))
        if fields is None:
            raise UserError(f"model={name} is no plain ViT or DeiT, whose sizes the operators are measured at")
        tokens = fields.grid_size**2 + fields.num_prefix_positions
        return cls(batch, tokens, fields.embed_dim, fields.num_heads, fields.mlp_dim)

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
    """What accelerated models run, from qkv as ``_attention_packed``; its results are float32."""
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


def _mlp(sizes: Sizes, random: Random) -> OperatorCase:
    """The feed-forward half of a block with its residual."""

    def scaled(fan_out: int, fan_in: int) -> Tensor:
        return (random(fan_out, fan_in).detach() * fan_in**-0.5).requires_grad_(x.requires_grad)

    x, residual = (random(sizes.batch, sizes.tokens, sizes.channels) for _ in range(2))
    fc1_weight, fc2_weight = scaled(sizes.hidden, sizes.channels), scaled(sizes.channels, sizes.hidden)

    def own_mlp(x: Tensor, residual: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor]:
        return (ops.mlp(x, w1, b1, w2, b2, residual=residual),)

    def torch_mlp(x: Tensor, residual: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor]:
        return (residual + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2),)

    return OperatorCase(
        inputs=(x, residual, fc1_weight, random(sizes.hidden), fc2_weight, random(sizes.channels)),
        rivals={"vitfast": own_mlp, "torch": torch_mlp},
    )


def _linear(*, widens: bool) -> Callable[[Sizes, Random], OperatorCase]:
    """A product with what follows it: the MLP's first with GELU, or its second with the residual."""

    def make(sizes: Sizes, random: Random) -> OperatorCase:
        fan_in, fan_out = (sizes.channels, sizes.hidden) if widens else (sizes.hidden, sizes.channels)
        x, residual = random(sizes.batch, sizes.tokens, fan_in), random(sizes.batch, sizes.tokens, fan_out)
        weight = (random(fan_out, fan_in).detach() * fan_in**-0.5).requires_grad_(x.requires_grad)
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


OPERATORS: dict[str, Callable[[Sizes, Random], OperatorCase]] = {
    "attention": _attention,
    "attention_packed": _attention_packed,
    "gated_positional_attention": _gated_positional_attention,
    "packed_attention": _packed_attention,
    "layer_norm": _layer_norm,
    "add_layer_norm": _add_layer_norm,
    "linear with gelu": _linear(widens=True),
    "linear with residual": _linear(widens=False),
    "mlp": _mlp,
    "quantize_float to fp16": _quantize_float(FloatFormat.fp16(), torch.float16),
    "quantize_float to fp8_e4m3fn": _quantize_float(FloatFormat.fp8_e4m3fn(), torch.float8_e4m3fn),
}


def sizes_of_case(name: str, sizes: Sizes) -> Sizes:
    """The sizes that an operator of ``OPERATORS`` is measured at: ConViT's attention by position knows patches only."""
    if name == "gated_positional_attention":
        return replace(sizes, tokens=math.isqrt(sizes.tokens) ** 2)
    return sizes


def has_case(name: str, precision: str, device: torch.device, *, backward: bool) -> bool:
    """Whether an operator of ``OPERATORS`` can be measured in this precision and, if asked for, with its gradient."""
    if name.startswith("quantize_float"):
        return precision == "fp32" and not backward
    if name == "gated_positional_attention":
        return not backward
    if name == "packed_attention":
        return precision in ("fp32", "bf16") and not backward and has_packed(name, device.type)
    return True
