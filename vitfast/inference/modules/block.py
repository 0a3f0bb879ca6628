"""Transformer blocks of accelerated models."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.modules.linear import InferenceLinear, describe_gemms
from vitfast.inference.modules.norm import InferenceNorm
from vitfast.inference.modules.patches import SplitLinear
from vitfast.inference.modules.position_bias import BiasTables
from vitfast.layers.rotary import RotaryTables

Positions = RotaryTables | BiasTables


class InferenceMlp(nn.Module):
    """``fc2(fc1(norm(x)), residual)``, or with a gate ``fc2(gate(norm(x)) * fc1(norm(x)), residual)``.

    The norm is optional; ``fc2`` may have one of its own.
    """

    def __init__(
        self,
        norm: InferenceNorm | None,
        fc1: InferenceLinear,
        fc2: InferenceLinear,
        gate: InferenceLinear | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.fc2 = fc2
        self.gate = gate

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Computes it from ``x`` ``[..., K]`` and ``residual`` ``[..., C]``, or None for zeros."""
        x = x if self.norm is None else self.norm(x)
        hidden = self.fc1(x) if self.gate is None else self.gate(x) * self.fc1(x)
        return self.fc2(hidden, residual)


class BlockParts(nn.Module):
    """Attention and MLP of a block, with their projections."""

    def __init__(self, qkv: InferenceLinear, attention: nn.Module, proj: InferenceLinear, mlp: InferenceMlp) -> None:
        super().__init__()
        self.qkv = qkv
        self.attention = attention
        self.proj = proj
        self.mlp = mlp

    def attended(self, x: Tensor, positions: Positions | None) -> Tensor:
        """Computes the input of the output projection, ``[B, N, H * D]``."""
        qkv = self.qkv(x)
        attended: Tensor = self.attention(qkv) if positions is None else self.attention(qkv, positions)
        return attended


class InferenceBlock(BlockParts):
    """A pre-norm block, one operator after the other; ``name``: of the source module."""

    def __init__(
        self,
        name: str,
        qkv: InferenceLinear,
        attention: nn.Module,
        proj: InferenceLinear,
        mlp: InferenceMlp,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(qkv, attention, proj, mlp)
        self.name = name
        self.dtype = dtype

    @property
    def path(self) -> str:
        """What runs the block, for the report."""
        return f"{describe_gemms(self.qkv, self.proj, self.mlp.fc1, self.mlp.fc2)}, separate attention"

    def joins(self, block: nn.Module) -> bool:
        """Whether ``forward`` can run ``block`` too, after this one, as one of its ``following``."""
        return False

    def forward(self, x: Tensor, positions: Positions | None = None) -> Tensor:
        """Transforms the residual stream ``x`` ``[B, N, C]``; returns a new tensor."""
        x = x.to(self.dtype).contiguous()
        x = self.proj(self.attended(x, positions), x)
        return self.mlp(x, x)


class PostNormBlock(InferenceBlock):
    """A block that normalizes the results of attention and MLP instead of their inputs."""

    def __init__(self, *arguments: Any, norm1: nn.Module, norm2: nn.Module) -> None:
        super().__init__(*arguments)
        self.norm1 = norm1
        self.norm2 = norm2

    def forward(self, x: Tensor, positions: Positions | None = None) -> Tensor:
        x = x.to(self.dtype).contiguous()
        x = x + self.norm1(self.proj(self.attended(x, positions)))
        return x + self.norm2(self.mlp(x, None))


class ParallelBlock(InferenceBlock):
    """A block with ``others`` beside it: ``x`` plus all their attention, and then plus all their MLPs."""

    def __init__(self, *arguments: Any, others: Iterable[BlockParts]) -> None:
        super().__init__(*arguments)
        self.others = nn.ModuleList(others)

    def forward(self, x: Tensor, positions: Positions | None = None) -> Tensor:
        x = x.to(self.dtype).contiguous()
        blocks: list[Any] = [self, *self.others]
        attended = x
        for block in blocks:
            attended = block.proj(block.attended(x, positions), attended)
        out = attended
        for block in blocks:
            out = block.mlp(attended, out)
        return out


def find_runs(blocks: nn.ModuleList, late_index: int | None = None) -> list[range]:
    """Returns the ranges of blocks that one call computes each; one of them starts at ``late_index``."""

    def joins(index: int) -> bool:
        before = blocks[index - 1]
        return isinstance(before, InferenceBlock) and before.joins(blocks[index]) and index != late_index

    starts = [index for index in range(len(blocks)) if index == 0 or not joins(index)]
    return [range(start, stop) for start, stop in pairwise([*starts, len(blocks)])]


class PatchMerging(nn.Module):
    """Projects 2 x 2 patches, and applies ``norm`` to the result.

    A grid with an odd number of rows or columns is completed by zeros.
    """

    def __init__(self, name: str, split: SplitLinear, norm: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.split = split
        self.norm = norm

    @property
    def path(self) -> str:
        """What runs it, for the report."""
        return describe_gemms(self.split.linear)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Merges ``x`` ``[B, N, C]`` on ``grid``; returns ``[B, N / 4, O]``."""
        below, right = grid[0] % 2, grid[1] % 2
        if below or right:
            x = F.pad(x.unflatten(1, grid), (0, 0, 0, right, 0, below)).flatten(1, 2)
        return self.norm(self.split(x, (grid[0] + below, grid[1] + right)))
