"""Rotary position embedding of patches (Su et al., 2021, in two dimensions)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Coordinates = Literal["indices", "centers"]


class RotaryTables(NamedTuple):
    """Rotates queries and keys: each pair of elements by an angle that depends on the patch."""

    tables: Tensor  # [H or 1, n, 2, D]: cosines, and sines with the sign of their term
    is_interleaved: bool  # whether pairs are elements 2i and 2i + 1, else i and i + D / 2

    def rotate(self, x: Tensor) -> Tensor:
        """Rotates the last n tokens of ``x`` ``[B, N, H, D]``."""
        prefix, patches = x.split((x.shape[1] - self.tables.shape[1], self.tables.shape[1]), dim=1)
        cosines, sines = self.tables.to(x.dtype).transpose(0, 1).unbind(2)  # each [n, H or 1, D]
        if self.is_interleaved:
            others = patches.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            others = patches.roll(patches.shape[-1] // 2, dims=-1)
        return torch.cat([prefix, patches * cosines + others * sines], dim=1)


def patch_coordinates(
    grid: tuple[int, int],
    coordinates: Coordinates,
    *,
    offset: float = 0.0,
    reference: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Computes where the patches of an image are.

    Args:
        grid: rows and columns of patches.
        coordinates: ``"indices"`` of row and column (EVA-02), or ``"centers"`` in an image from -1 to 1 (DINOv3).
        offset: added to the index of each row and column.
        reference: rows and columns of the grid for which the frequencies were chosen; indices are scaled to it.
        device: of the result.

    Returns:
        ``[rows * columns, 2]``: y, x.
    """
    axes = []
    for axis, size in enumerate(grid):
        index = torch.arange(size, device=device, dtype=torch.float32)
        if coordinates == "centers":
            axes.append(2.0 * ((index + 0.5 + offset) / size) - 1.0)
        elif reference is None:
            axes.append(index + offset)
        else:
            axes.append((index + offset) / size * reference[axis])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def axial_frequencies(bands: Tensor, *, x_first: bool = False) -> Tensor:
    """Frequencies of which one half depends on the row, and the other half on the column.

    Args:
        bands: ``[D / 4]``, in radians per unit of the coordinates.
        x_first: whether the first half depends on the column.

    Returns:
        ``[1, 2, D / 2]``, as ``rotary_tables`` takes them.
    """
    first, second = torch.stack([bands, torch.zeros_like(bands)]), torch.stack([torch.zeros_like(bands), bands])
    frequencies = torch.cat([first, second], dim=1)
    return (frequencies.flip(0) if x_first else frequencies).unsqueeze(0)


def rotary_tables(frequencies: Tensor, coordinates: Tensor, *, is_interleaved: bool) -> RotaryTables:
    """Computes the tables for some patches.

    Args:
        frequencies: ``[H or 1, 2, D / 2]``: angle of each pair per unit of y and of x, in radians.
        coordinates: of the patches, ``[n, 2]``.
        is_interleaved: as in ``RotaryTables``.
    """
    y, x = coordinates[:, :1], coordinates[:, 1:]
    angles = y * frequencies[:, None, 0] + x * frequencies[:, None, 1]  # [H or 1, n, D / 2]
    cosines, sines = angles.cos(), angles.sin()
    if is_interleaved:
        tables = [cosines.repeat_interleave(2, dim=-1), torch.stack([-sines, sines], dim=-1).flatten(-2)]
    else:
        tables = [torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)]
    return RotaryTables(torch.stack(tables, dim=2), is_interleaved)


class RotaryScheme(NamedTuple):
    """A published choice of frequencies and coordinates, the same for all heads and blocks.

    Attributes:
        temperature: ratio of the highest to the lowest frequency.
        coordinates: as in ``patch_coordinates``. Of ``"centers"`` the highest frequency is a turn per unit, of
            ``"indices"`` a radian.
        is_interleaved: as in ``RotaryTables``.
        reference: as in ``patch_coordinates``.
    """

    temperature: float
    coordinates: Coordinates
    is_interleaved: bool
    reference: tuple[int, int] | None = None

    def frequencies(self, head_dim: int, device: torch.device | None = None) -> Tensor:
        """Computes the frequencies, as ``rotary_tables`` takes them, of heads with a multiple of 4 elements."""
        exponents = torch.arange(head_dim // 4, device=device, dtype=torch.float32) / (head_dim // 4)
        unit = 2 * math.pi if self.coordinates == "centers" else 1.0
        return axial_frequencies(unit * self.temperature**-exponents)

    def tables(self, grid_size: int, head_dim: int, device: torch.device | None = None) -> RotaryTables:
        """Computes the tables of a square grid of patches, in float32."""
        grid = (grid_size, grid_size)
        at = patch_coordinates(grid, self.coordinates, reference=self.reference, device=device)
        return rotary_tables(self.frequencies(head_dim, device), at, is_interleaved=self.is_interleaved)


RotaryName = Literal["none", "eva02", "dinov3"]
ROTARY_SCHEMES: dict[str, RotaryScheme] = {
    "eva02": RotaryScheme(10000.0, "indices", is_interleaved=True, reference=(16, 16)),
    "dinov3": RotaryScheme(100.0, "centers", is_interleaved=False),
}
