"""Relative position bias and windows of accelerated models."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.errors import UserError
from vitfast.inference.ir import QueryBiasSpec, RelativeBiasSpec, WindowSpec

_MASKED = -100.0  # added to the logits of tokens that the shift has brought into one window


class BiasTables(NamedTuple):
    """Which tokens attend among themselves, and the bias on their logits; names are arguments of the operators."""

    bias: Tensor | None  # [patterns, H, n, n]
    windows: Tensor | None  # [W, n]: index of each token in the image, -1 for padding; None: one window of all tokens
    patterns: Tensor | None  # [W]: index of each window's bias; None: 0
    lengths: Tensor | None = None  # [W]: tokens that attend, the first of each window; None: all, padding included
    # terms of a bias that depends on the query, for a grid of h rows and w columns of tokens: with a query q at (y, x),
    # the logit of the key at (i, j) is increased by q (row_terms[:, i - y + h - 1] + column_terms[:, j - x + w - 1])
    row_terms: Tensor | None = None  # [D, 2 h - 1]
    column_terms: Tensor | None = None  # [D, 2 w - 1]

    def query_bias(self, q: Tensor) -> Tensor:
        """Computes the bias ``[B, H, n, n]`` of queries ``q`` ``[B, n, H, D]``."""
        tables = [table for table in (self.row_terms, self.column_terms) if table is not None]
        sides = [(table.shape[1] + 1) // 2 for table in tables]
        by_offset = []
        for table, side in zip(tables, sides, strict=True):
            place = torch.arange(side, device=q.device)
            by_offset.append(table.to(q.dtype)[:, place - place[:, None] + side - 1])  # [D, query, key]
        grid = q.unflatten(1, sides)
        rows = torch.einsum("byxhd,dyi->bhyxi", grid, by_offset[0])
        columns = torch.einsum("byxhd,dxj->bhyxj", grid, by_offset[1])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


class PositionBias(nn.Module):
    """Computes the tables for a grid of tokens; those of the model's image size once.

    Args:
        bias: the bias, or None.
        windows: the windows, or None for attention between all tokens.
        heads: number of heads H.
        grid: rows and columns of the tokens for an image of the model's size.
        device: device of the tables.

    Raises:
        UserError: the windows do not fit the grid.
    """

    table: Tensor | None
    rows: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        bias: RelativeBiasSpec | QueryBiasSpec | None,
        windows: WindowSpec | None,
        heads: int,
        grid: tuple[int, int],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.size = bias.size if isinstance(bias, RelativeBiasSpec) else None
        self.has_class_token = isinstance(bias, RelativeBiasSpec) and bias.has_class_token
        self.windows = windows
        self.heads = heads
        self.grid = grid
        tables: dict[str, Tensor | None] = {"table": None, "rows": None, "columns": None}
        if isinstance(bias, RelativeBiasSpec):
            tables["table"] = bias.table
        elif bias is not None:
            tables |= {"rows": bias.rows, "columns": bias.columns}
        for name, tensor in tables.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().to(device, torch.float32))
        for name, tensor in self._computed(grid, device)._asdict().items():
            self.register_buffer(f"computed_{name}", tensor)

    def forward(self, grid: tuple[int, int]) -> BiasTables:
        """Returns the tables for images with ``grid`` rows and columns of tokens."""
        if grid == self.grid:
            return BiasTables(*(getattr(self, f"computed_{name}") for name in BiasTables._fields))
        device = next(self.buffers()).device
        return self._computed(grid, device)

    def _computed(self, grid: tuple[int, int], device: torch.device) -> BiasTables:
        size = grid if self.windows is None else self.windows.size
        tables = self._in_windows(size, grid, device)
        if self.rows is None or self.columns is None:
            return tables
        row_terms, column_terms = offset_terms(self.rows, size[0]), offset_terms(self.columns, size[1])
        return tables._replace(row_terms=row_terms, column_terms=column_terms)

    def _in_windows(self, size: tuple[int, int], grid: tuple[int, int], device: torch.device) -> BiasTables:
        bias = None
        if self.table is not None and self.size is not None:
            bias = relative_bias(self.table, self.size, size, has_class_token=self.has_class_token)[None]
        if self.windows is None:
            return BiasTables(bias, None, None)
        shift = _shift(self.windows, grid)
        indices = split_windows(self.windows, shift, grid, device)
        if not any(shift):
            return BiasTables(bias, indices.flatten(0, 1), None)
        masked = shift_masks(size, shift, device)[:, None] * _MASKED
        bias = masked.expand(-1, self.heads, -1, -1).contiguous() if bias is None else bias + masked
        is_last = [torch.arange(count, device=device) == count - 1 for count in indices.shape[:2]]
        patterns = 2 * is_last[0][:, None].long() + is_last[1].long()
        return BiasTables(bias, indices.flatten(0, 1), patterns.flatten())


def relative_bias(table: Tensor, size: tuple[int, int], grid: tuple[int, int], *, has_class_token: bool) -> Tensor:
    """Computes biases on logits from a table of relative positions.

    Args:
        table: as in ``RelativeBiasSpec``.
        size: rows and columns that the table is made for.
        grid: rows and columns of the tokens; the table is resized to them (bilinear, as transformers' BEiT).
        has_class_token: whether a class token is before the patches.

    Returns:
        ``[H, n, n]`` of all n tokens.
    """
    offsets = table[: (2 * size[0] - 1) * (2 * size[1] - 1)]
    if grid != size:
        as_image = offsets.view(2 * size[0] - 1, 2 * size[1] - 1, -1).permute(2, 0, 1)[None]
        sides = (2 * grid[0] - 1, 2 * grid[1] - 1)
        offsets = F.interpolate(as_image, size=sides, mode="bilinear")[0].flatten(1).t()
    y, x = torch.meshgrid(*(torch.arange(side, device=table.device) for side in grid), indexing="ij")
    y, x = y.flatten(), x.flatten()
    down, across = y[:, None] - y + grid[0] - 1, x[:, None] - x + grid[1] - 1
    bias = offsets[down * (2 * grid[1] - 1) + across].permute(2, 0, 1)
    if has_class_token:
        to_patches, to_class, to_itself = table[-3:].view(3, -1, 1, 1)
        tokens = bias.shape[1]
        first = torch.cat([to_itself, to_patches.expand(-1, -1, tokens)], dim=2)
        bias = torch.cat([first, torch.cat([to_class.expand(-1, tokens, -1), bias], dim=2)], dim=1)
    return bias.contiguous()


def offset_terms(table: Tensor, side: int) -> Tensor:
    """Turns a table of ``QueryBiasSpec`` ``[T, D]`` into terms of ``BiasTables``, ``[D, 2 * side - 1]``."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.t()[None], size=2 * side - 1, mode="linear")[0].t()
    return table.flip(0).t().contiguous()


def _shift(spec: WindowSpec, grid: tuple[int, int]) -> tuple[int, int]:
    """Returns the shift on a grid; raises UserError where the windows do not fit."""
    if spec.shifts_small_grids or min(grid) > min(spec.size):
        return spec.shift
    if min(grid) < min(spec.size):
        raise UserError(f"windows of {spec.size} tokens do not fit a grid of {grid} tokens; use larger images")
    return (0, 0)


def split_windows(spec: WindowSpec, shift: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the index of the tokens in each window, ``[rows, columns, n]`` for rows and columns of windows.

    Padding has the index -1.
    """
    indices = torch.arange(grid[0] * grid[1], device=device).view(grid)
    padding = (0, -grid[1] % spec.size[1], 0, -grid[0] % spec.size[0])
    if spec.pads_first:
        indices = F.pad(indices, padding, value=-1)
    indices = indices.roll((-shift[0], -shift[1]), dims=(0, 1))
    if not spec.pads_first:
        indices = F.pad(indices, padding, value=-1)
    return indices.unflatten(1, (-1, spec.size[1])).unflatten(0, (-1, spec.size[0])).transpose(1, 2).flatten(2)


def shift_masks(size: tuple[int, int], shift: tuple[int, int], device: torch.device) -> Tensor:
    """Returns which tokens of a window the shift has brought together from opposite sides of the grid.

    Only windows at the end of the grid have such tokens.

    Returns:
        ``[4, n, n]``, bool: for windows that are not at the end, in the last column, in the last row, and in both.
    """
    rows, columns = (torch.arange(side, device=device) >= side - by for side, by in zip(size, shift, strict=True))
    no_row, no_column = torch.zeros_like(rows), torch.zeros_like(columns)
    ends = ((no_row, no_column), (no_row, columns), (rows, no_column), (rows, columns))
    regions = torch.stack([(2 * row[:, None].long() + column.long()).flatten() for row, column in ends])
    return regions[:, :, None] != regions[:, None]
