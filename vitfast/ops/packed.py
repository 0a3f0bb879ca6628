"""The CPU operators of accelerated models, on packed weights; inference only.

Schemas and the arithmetic of each precision are in ``csrc/library.cpp``. ``vitfast.inference.cpu`` calls these
operators directly; it checks what it passes when it packs. This module registers their fake kernels and FLOP formulas.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, K inputs and n outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitfast.ops.attention import fake_packed_out
from vitfast.ops.mlp import mlp_flops
from vitfast.ops.registration import attention_flops, gemm_flops, register


class BlockParameters(NamedTuple):
    """The parameters of one block, in the order in which ``packed_blocks`` takes them; matrices are packed."""

    norm1_weight: Any
    norm1_bias: Any
    qkv: Any
    qkv_bias: Any
    proj: Any
    proj_bias: Any
    scale1: Any
    norm2_weight: Any
    norm2_bias: Any
    fc1: Any
    fc1_bias: Any
    gate: Any
    gate_bias: Any
    fc2: Any
    fc2_bias: Any
    scale2: Any
    cosine: Any


class BlockPositions(NamedTuple):
    """The positions of one block, in the order in which ``packed_blocks`` takes them."""

    rotary: Any = None
    bias: Any = None
    windows: Any = None
    patterns: Any = None
    lengths: Any = None
    row_terms: Any = None
    column_terms: Any = None


def _fake_linear(x: Tensor, n: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=torch.float32)


def _fake_related_attention(qkv: Tensor, return_logits: bool) -> tuple[Tensor, Tensor | None]:
    batch, tokens, _, heads, _ = qkv.shape
    return fake_packed_out(qkv), qkv.new_empty((batch, heads, tokens, tokens)) if return_logits else None


def _fake_blocks(x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _mlp_flops(x: Sequence[int], hidden: int, gate: Sequence[int] | None, n: int) -> int:
    return mlp_flops(x, hidden, n) + (0 if gate is None else gemm_flops(x, hidden))


def _attention_flops(qkv: Sequence[int], windows: Sequence[int] | None) -> int:
    batch, _, *rest = qkv
    return attention_flops(qkv if windows is None else (batch * windows[0], windows[1], *rest))


def _attention_part_flops(x: Sequence[int], heads: int, head_dim: int, windows: Sequence[int] | None) -> int:
    batch, tokens, channels = x
    inner = heads * head_dim
    projections = gemm_flops(x, 3 * inner) + gemm_flops((batch, tokens, inner), channels)
    return projections + _attention_flops((batch, tokens, 3, heads, head_dim), windows)


def _blocks_flops(
    x: Sequence[int],
    parameters: Sequence[Sequence[int] | None],
    positions: Sequence[Sequence[int] | None],
    heads: int,
    head_dim: int,
    hidden: int,
) -> int:
    names = BlockParameters(*parameters[: len(BlockParameters._fields)])
    blocks, size = len(parameters) // len(names), len(BlockPositions._fields)
    of_blocks = [BlockPositions(*positions[size * i : size * (i + 1)]) for i in range(blocks)]
    attention = sum(_attention_part_flops(x, heads, head_dim, one.windows) for one in of_blocks)
    return attention + blocks * _mlp_flops(x, hidden, names.gate, x[-1])


def _fake_merge(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    kept = tokens - count
    places = x.new_empty((batch, tokens), dtype=torch.int64)
    return x.new_empty((batch, kept, channels)), x.new_empty((batch, kept)), places


def _tokens_of_blocks(tokens: int, blocks: int, count: int, prefix: int) -> list[int]:
    """Number of tokens before each block that merges ``count`` of them, and after the last one."""
    numbers = [tokens]
    for _ in range(blocks):
        numbers.append(numbers[-1] - min(count, max(numbers[-1] - prefix, 0) // 2))
    return numbers


def _fake_merging_blocks(
    x: Tensor, parameters: Sequence[Tensor | None], count: int, prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = len(parameters) // len(BlockParameters._fields)
    return _fake_merge(x, x.shape[1] - _tokens_of_blocks(x.shape[1], blocks, count, prefix)[-1])


def _merging_blocks_flops(
    x: Sequence[int],
    parameters: Sequence[Sequence[int] | None],
    heads: int,
    head_dim: int,
    hidden: int,
    count: int,
    prefix: int,
) -> int:
    batch, tokens, channels = x
    names = BlockParameters(*parameters[: len(BlockParameters._fields)])
    numbers = _tokens_of_blocks(tokens, len(parameters) // len(names), count, prefix)
    return sum(
        _attention_part_flops((batch, before, channels), heads, head_dim, None)
        + _mlp_flops((batch, after, channels), hidden, names.gate, channels)
        for before, after in pairwise(numbers)
    )


def _fake_patch_embed(images: Tensor, n: int, patch_h: int, patch_w: int, prefix: Tensor) -> Tensor:
    batch, _, height, width = images.shape
    tokens = prefix.shape[0] + (height // patch_h) * (width // patch_w)
    return images.new_empty((batch, tokens, n), dtype=torch.float32)


def _patch_embed_flops(images: Sequence[int], n: int) -> int:
    return gemm_flops(images, n)


def _split_grid(
    images: Sequence[int], patch: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Number of patches down and across."""
    down, across = (
        (size + 2 * zeros - window) // step + 1
        for size, window, step, zeros in zip(images[2:], patch, stride, padding, strict=True)
    )
    return down, across


def _fake_split_linear(
    images: Tensor, patch: Sequence[int], stride: Sequence[int], padding: Sequence[int], n: int
) -> Tensor:
    down, across = _split_grid(images.shape, patch, stride, padding)
    return images.new_empty((images.shape[0], down * across, n), dtype=torch.float32)


def _split_linear_flops(
    images: Sequence[int], patch: Sequence[int], stride: Sequence[int], padding: Sequence[int], n: int
) -> int:
    return gemm_flops((*images[:2], *_split_grid(images, patch, stride, padding), *patch), n)


def _fake_performer(kqv: Tensor) -> Tensor:
    return kqv.new_empty((*kqv.shape[:-1], kqv.shape[-1] // 3))


def _performer_flops(kqv: Sequence[int], projection: Sequence[int]) -> int:
    batch, tokens, width = kqv
    return 4 * gemm_flops((batch, tokens, width // 3), projection[0])


def _fake_pack_weight() -> Tensor:
    raise NotImplementedError("weights are packed once, by vitfast.accelerate, and never within a traced program")


register("pack_weight", _fake_pack_weight)
register("packed_linear", _fake_linear, flops=gemm_flops)
register("packed_mlp", _fake_linear, flops=_mlp_flops)
register("packed_blocks", _fake_blocks, flops=_blocks_flops)
register("packed_merging_blocks", _fake_merging_blocks, flops=_merging_blocks_flops)
register("packed_attention", fake_packed_out, flops=_attention_flops)
register("packed_related_attention", _fake_related_attention, flops=attention_flops)
register("packed_patch_embed", _fake_patch_embed, flops=_patch_embed_flops)
register("merge_tokens", _fake_merge)
register("packed_performer", _fake_performer, flops=_performer_flops)
register("packed_split_linear", _fake_split_linear, flops=_split_linear_flops)
