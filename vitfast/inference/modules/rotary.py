"""Rotary position embedding of accelerated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.ir import RotarySpec
from vitfast.layers.rotary import RotaryTables, patch_coordinates, rotary_tables


class RotaryEmbedding(nn.Module):
    """Computes tables of rotations; those of the model's image size once.

    Args:
        spec: frequencies and coordinates.
        grid: rows and columns of the patches of an image of the model's size.
        device: device of the tables.
    """

    frequencies: Tensor
    tables: Tensor

    def __init__(self, spec: RotarySpec, grid: tuple[int, int], device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.grid = grid
        self.register_buffer("frequencies", spec.frequencies.detach().to(device, torch.float32))
        self.register_buffer("tables", self._computed(grid).tables.contiguous())

    def forward(self, grid: tuple[int, int]) -> RotaryTables:
        """Returns the tables for images with ``grid`` rows and columns of patches."""
        return RotaryTables(self.tables, self.spec.is_interleaved) if grid == self.grid else self._computed(grid)

    def _computed(self, grid: tuple[int, int]) -> RotaryTables:
        spec = self.spec
        at = patch_coordinates(
            grid, spec.coordinates, offset=spec.offset, reference=spec.reference, device=self.frequencies.device
        )
        return rotary_tables(self.frequencies, at, is_interleaved=spec.is_interleaved)
