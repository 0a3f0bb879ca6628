"""A transformer block of an accelerated model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitfast import ops
from vitfast.inference.ir import BlockSpec, MlpSpec, NormSpec
from vitfast.inference.packed.packed_attention import PackedAttention
from vitfast.inference.packed.packed_linear import PackedLinear
from vitfast.inference.packed.packed_norm import PackedNorm
from vitfast.inference.packed.packer import Packer
from vitfast.ops.mlp import has_mlp_kernel
from vitfast.ops.packed import has_packed

# activation -> the word of the operator ``mlp`` for it
_GELU = {"gelu": "none", "gelu_tanh": "tanh"}


class PackedNormLinear(nn.Module):
    """``linear(norm(x))``, in one operator where the two agree on the precision.

    Args:
        norm: before the layer.
        linear: the layer.
    """

    def __init__(self, norm: PackedNorm, linear: PackedLinear) -> None:
        super().__init__()
        self.norm = norm
        self.linear = linear
        self.is_fused = (
            linear.is_packed
            and has_packed("packed_norm_linear", linear.packed.device.type)
            and one_precision((norm,), (linear,))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Computes it from ``x`` ``[..., C]``."""
        linear = self.linear
        if not self.is_fused:
            normalized: Tensor = linear(self.norm(x))
            return normalized
        out: Tensor = torch.ops.vitfast.packed_norm_linear.default(
            x, *_norm_arguments(self.norm), linear.packed, linear.bias, linear.out_features, linear.precision, "none"
        )
        return out


class PackedMlp(nn.Module):
    """``residual + scale * fc2(activation(fc1(norm(x))))``.

    Args:
        norm: before it, or None.
        described: the MLP.
        packer: packs.
        scale: LayerScale ``[C]``, or None.
    """

    scale: Tensor | None

    def __init__(self, norm: NormSpec | None, described: MlpSpec, packer: Packer, scale: Tensor | None = None) -> None:
        super().__init__()
        self.norm = None if norm is None else packer.norm(norm)
        self.fc1 = packer.linear(described.fc1)
        self.fc2 = packer.linear(described.fc2)
        self.activation = described.activation
        self.register_buffer("scale", packer.in_stream(scale))
        self.is_fused = packer.has("packed_mlp") and one_precision((self.norm,), (self.fc1, self.fc2))
        self.is_cast = self.fc1.is_cast and self.fc2.is_cast
        self.is_mlp = self.is_cast and scale is None and self.activation in _GELU

    @property
    def operators(self) -> tuple[str, ...]:
        """``mlp``, where it is a kernel of its own rather than two products."""
        if not self.is_mlp:
            return ()
        fc1, fc2 = self.fc1, self.fc2
        widths = (fc1.in_features, fc1.out_features, fc2.out_features)
        return ("mlp",) * has_mlp_kernel(fc1.packed.device, fc1.packed.dtype, widths, _GELU[self.activation])

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from ``x`` ``[..., K]`` and ``residual`` ``[..., C]``, or None for zero."""
        if not self.is_fused:
            return self.of_normalized(x if self.norm is None else self.norm(x), residual)
        return torch.ops.vitfast.packed_mlp.default(
            x,
            *_norm_arguments(self.norm),
            self.fc1.packed,
            self.fc1.bias,
            self.fc1.out_features,
            self.fc2.packed,
            self.fc2.bias,
            self.fc2.out_features,
            self.fc1.precision,
            self.activation,
            self.scale,
            residual,
        )

    def of_normalized(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes the same of what has passed the LayerNorm."""
        if self.is_mlp:
            weights = (self.fc1.packed, self.fc1.bias, self.fc2.packed, self.fc2.bias)
            return ops.mlp(x.to(weights[0].dtype), *weights, residual=residual, approximate=_GELU[self.activation])
        hidden = self.fc1(x, self.activation)
        out: Tensor = self.fc2(hidden, scale=self.scale, residual=residual)
        return out


class PackedBlock(nn.Module):
    """A pre-norm block, in one operator where there is one for it.

    Args:
        described: the block.
        packer: packs.
        num_patches: of an image, for ConViT's attention.
    """

    scale1: Tensor | None

    def __init__(self, described: BlockSpec, packer: Packer, num_patches: int = 0) -> None:
        super().__init__()
        self.name = described.name
        self.qkv = PackedNormLinear(packer.norm(described.norm1), packer.linear(described.attention.qkv))
        self.attention = PackedAttention(described.attention, packer, num_patches)
        self.proj = packer.linear(described.attention.proj)
        self.dtype = packer.stream_dtype
        self.register_buffer("scale1", packer.in_stream(described.scale1))
        self.mlp = PackedMlp(described.norm2, described.mlp, packer, described.scale2)
        is_fused = (
            packer.has("packed_block")
            and self.mlp.is_fused
            and self.attention.gate is None
            and not self.attention.has_qk_norm
            and one_precision((self.qkv.norm, self.mlp.norm), (self.qkv.linear, self.proj, self.mlp.fc1))
        )
        self._arguments = self._fused_arguments() if is_fused else None

    @property
    def path(self) -> str:
        """What runs it."""
        if self._arguments is not None:
            return f"one packed operator, {self.proj.precision}"
        return f"{path_of(self.qkv.linear, self.proj, self.mlp.fc1, self.mlp.fc2)}, attention apart"

    @property
    def operators(self) -> tuple[str, ...]:
        """Those of vitfast that it calls itself."""
        return ("gated_positional_attention" if self.attention.is_blended else "attention",)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms the residual stream ``x`` ``[B, N, C]``; returns a new tensor."""
        if self._arguments is not None:
            fused: Tensor = torch.ops.vitfast.packed_block.default(x.contiguous(), *self._arguments)
            return fused
        x = x.to(self.dtype).contiguous()
        attended = self.attention(self.qkv(x))
        if self.mlp.is_cast and self.mlp.norm is not None:
            x, normalized = self.mlp.norm.add(self.proj(attended, scale=self.scale1), x)
            return self.mlp.of_normalized(normalized, x)
        x = self.proj(attended, scale=self.scale1, residual=x)
        out: Tensor = self.mlp(x, x)
        return out

    def _fused_arguments(self) -> tuple[Any, ...]:
        """What the operator takes beside ``x``, put together once: looking the parts up takes longer than the call."""
        attention, mlp = self.attention, self.mlp
        return (
            *_norm_arguments(self.qkv.norm),
            self.qkv.linear.packed,
            self.qkv.linear.bias,
            *(None, None, None, None, 0.0, False),  # no LayerNorm of q and k
            attention.heads,
            attention.head_dim,
            attention.scale,
            self.proj.packed,
            self.proj.bias,
            self.scale1,
            *_norm_arguments(mlp.norm),
            mlp.fc1.packed,
            mlp.fc1.bias,
            mlp.fc1.out_features,
            mlp.fc2.packed,
            mlp.fc2.bias,
            mlp.scale,
            mlp.activation,
            self.proj.precision,
        )


class PackedLastBlock(nn.Module):
    """The last block of a model that reads its first tokens only.

    Keys and values are needed of all tokens; queries, the projection and the MLP of those that are read. In a block
    with an MLP of four times its width these are five sixths of the products.

    Args:
        described: the block.
        packer: packs.
        tokens: how many of the first tokens are read.
    """

    scale1: Tensor | None

    def __init__(self, described: BlockSpec, packer: Packer, tokens: int) -> None:
        super().__init__()
        self.name = described.name
        self.tokens = tokens
        inner = described.attention.heads * described.attention.head_dim
        norm1, qkv = packer.norm(described.norm1), described.attention.qkv
        self.q = PackedNormLinear(norm1, packer.linear(qkv, rows=slice(0, inner)))
        self.kv = PackedNormLinear(norm1, packer.linear(qkv, rows=slice(inner, 3 * inner)))
        self.attention = PackedAttention(described.attention, packer)
        self.proj = packer.linear(described.attention.proj)
        self.dtype = packer.stream_dtype
        self.register_buffer("scale1", packer.in_stream(described.scale1))
        self.mlp = PackedMlp(described.norm2, described.mlp, packer, described.scale2)

    @property
    def path(self) -> str:
        """What runs it."""
        few = "one token" if self.tokens == 1 else f"{self.tokens} tokens"
        path = path_of(self.q.linear, self.kv.linear, self.proj, self.mlp.fc1, self.mlp.fc2)
        return f"{path}, for the {few} that the head reads"

    def forward(self, x: Tensor) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``; returns the first tokens ``[B, tokens, C]``."""
        return self.first_tokens(x, self.tokens)

    def first_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``; returns the first ``tokens`` of the result."""
        x = x.to(self.dtype).contiguous()  # a block with its own forward may give anything
        first = x[:, :tokens]
        attended = self.attention.of_first(self.q(first), self.kv(x))
        first = self.proj(attended, scale=self.scale1, residual=first.contiguous())
        out: Tensor = self.mlp(first, first)
        return out


def one_precision(norms: tuple[PackedNorm | None, ...], linears: tuple[PackedLinear, ...]) -> bool:
    """Whether layers all compute in one precision, so that one operator may run them."""
    precisions = {linear.precision for linear in linears}
    rounds = {norm.rounds_input for norm in norms if norm is not None}
    return len(precisions) == 1 and rounds <= {precisions == {"fp16_32"}}


def path_of(*linears: PackedLinear) -> str:
    """Says what runs some products."""
    kinds = {("packed products" if one.is_packed else "torch's products", one.precision) for one in linears}
    return " and ".join(f"{kind}, {precision}" for kind, precision in sorted(kinds))


def _norm_arguments(norm: PackedNorm | None) -> tuple[Tensor | None, Tensor | None, float | None]:
    return (None, None, None) if norm is None else (norm.weight, norm.bias, norm.eps)
