"""Position embeddings: fixed sinusoids, and learned ones resampled for another image size."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PositionInterpolation = Literal["zoom_linear", "bicubic", "bicubic_aligned", "bicubic_antialias"]

# name -> options of torch.nn.functional.interpolate
_INTERPOLATIONS: dict[str, dict[str, Any]] = {
    "zoom_linear": {"mode": "bilinear", "align_corners": True},  # Google's scipy.ndimage.zoom(order=1), so ViT-pytorch
    "bicubic": {"mode": "bicubic", "align_corners": False},  # DeiT, Hugging Face, myrtle-vision, vissl's ViT
    "bicubic_aligned": {"mode": "bicubic", "align_corners": True},  # torchvision, vissl's ConViT
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},  # timm
}


def resize_position_embedding(
    position_embedding: Tensor,
    grid_size: int,
    *,
    num_prefix_tokens: int = 1,
    interpolation: PositionInterpolation = "bicubic",
) -> Tensor:
    """Resamples position embeddings to another grid of patches, for fine-tuning at another image size.

    Args:
        position_embedding: ``[1, T + G * G, C]``: T prefix tokens, then a square grid of patches.
        grid_size: the new number of patches along a side.
        num_prefix_tokens: T, copied unchanged.
        interpolation: ``"zoom_linear"`` (corners aligned), ``"bicubic"`` (a = -0.75), ``"bicubic_aligned"`` (corners
            aligned) or ``"bicubic_antialias"`` (a = -0.5, and wider where the grid shrinks).

    Returns:
        ``[1, T + grid_size * grid_size, C]`` of the same type.

    Raises:
        ValueError: the patches do not form a square grid, or an argument is out of range.
    """
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {interpolation!r}")
    if grid_size < 1:
        raise ValueError(f"grid_size must be at least 1, got {grid_size}")
    num_patches = position_embedding.shape[1] - num_prefix_tokens
    old_grid_size = math.isqrt(max(num_patches, 0))
    if num_patches < 1 or old_grid_size**2 != num_patches:
        raise ValueError(
            f"position_embedding must hold {num_prefix_tokens} tokens and a square grid of patches, "
            f"got shape {list(position_embedding.shape)}; check num_prefix_tokens"
        )
    prefix, patches = position_embedding.split([num_prefix_tokens, num_patches], dim=1)
    grid = patches.unflatten(1, (old_grid_size, old_grid_size)).permute(0, 3, 1, 2)  # [1, C, G, G]
    precise = grid.to(torch.promote_types(grid.dtype, torch.float32))
    resized = F.interpolate(precise, size=(grid_size, grid_size), **_INTERPOLATIONS[interpolation])
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(patches.dtype)], dim=1)


def sinusoidal_positions(num_positions: int, dim: int) -> Tensor:
    """Tabulates the sinusoids of Vaswani et al. (2017, section 3.5), sine and cosine alternating over the channels.

    Channel j of position p is ``sin(p / 10000 ** (2 * (j // 2) / dim))``, the cosine where j is odd.

    Returns:
        ``[1, num_positions, dim]``, of torch's default type.
    """
    channels = torch.arange(dim, dtype=torch.float64)
    frequencies = 10000.0 ** -(2 * (channels // 2) / dim)
    angles = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1) * frequencies  # [num_positions, dim]
    table = torch.where(channels % 2 == 0, angles.sin(), angles.cos())
    return table.to(torch.get_default_dtype()).unsqueeze(0)
