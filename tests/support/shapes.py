"""Shapes, and the memory layouts of a tensor of one shape.

Token counts: 197 (ViT at 224), 198 (DeiT), 577 (384), 257 and 1025 (256 and 512 at patch 16), DVT's 49, 50, 100, 101
and 196, and the neighbours of 16, where tails of vectors and tiles begin.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

TOKENS = (0, 1, 15, 16, 17, 49, 50, 100, 101, 196, 197, 198, 257, 577, 1025)
HEAD_DIMS = (3, 7, 8, 24, 32, 48, 64, 80, 96, 120, 128, 129, 136)
CHANNELS = (1, 3, 15, 16, 17, 31, 64, 65, 192, 193, 384, 768, 1025)


def draw_attention_sizes(draw: random.Random, budget: int) -> tuple[int, int, int, int]:
    """Draws B 0-9, H 1-8, N and D with B * H * N * N * D within ``budget`` if possible, else small B, H and D."""
    tokens = draw.choice(TOKENS[:9] * 4 + TOKENS[9:13] + TOKENS)
    head_dim = draw.choice(HEAD_DIMS)
    heads = draw.randint(1, 8)
    batch = draw.randint(0, 9)
    while batch * heads * tokens**2 * head_dim > budget:
        if batch > 1:
            batch //= 2
        elif heads > 1:
            heads //= 2
        elif head_dim > 8:
            head_dim = 8
        else:
            break
    return batch, heads, tokens, head_dim


def draw_leading_shape(draw: random.Random, budget: int) -> tuple[int, ...]:
    """Draws 0 to 3 leading dimensions, sometimes empty, with a product of at most ``budget``."""
    sizes: list[int] = []
    for _ in range(draw.randint(0, 3)):
        size = draw.choice((0, 1, 2, 3, 5, 9, 16, 17, 49, 50, 101, 197))
        total = size
        for other in sizes:
            total *= other
        sizes.append(size if total <= budget else 1)
    return tuple(sizes)


def _transposed(tensor: Tensor, _: float) -> Tensor:
    """The last two dimensions swapped in memory."""
    return tensor.transpose(-2, -1).contiguous().transpose(-2, -1) if tensor.dim() >= 2 else tensor


def _reversed_dimensions(tensor: Tensor, _: float) -> Tensor:
    """Column-major memory."""
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def _heads_last(tensor: Tensor, _: float) -> Tensor:
    """Dimension 1 innermost, as channels_last has it."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() >= 3 else tensor


def _every_second(tensor: Tensor, around: float) -> Tensor:
    """A stride of two in the last dimension."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), around, dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def _padded_rows(tensor: Tensor, around: float) -> Tensor:
    """Rows further apart than they are long, as a slice of a wider tensor has them."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 3), around, dtype=tensor.dtype)
    wide[..., 1:-2] = tensor
    return wide[..., 1:-2]


def _misaligned(tensor: Tensor, around: float) -> Tensor:
    """Contiguous, but starting one element into its storage."""
    flat = torch.full((tensor.numel() + 1,), around, dtype=tensor.dtype)
    flat[1:] = tensor.reshape(-1)
    return flat[1:].view(tensor.shape)


def _expanded(tensor: Tensor, _: float) -> Tensor:
    """A stride of zero in the first dimension: every slice equals the first one, so this changes the values."""
    return tensor[:1].expand(tensor.shape) if tensor.dim() >= 2 else tensor


def _of_no_stride(tensor: Tensor, _: float) -> Tensor:
    """A single element seen everywhere, as the gradient of a sum is; this changes the values."""
    return tensor.reshape(-1)[:1].reshape((1,) * tensor.dim()).expand(tensor.shape)


LAYOUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "transposed": _transposed,
    "reversed_dimensions": _reversed_dimensions,
    "heads_last": _heads_last,
    "every_second": _every_second,
    "padded_rows": _padded_rows,
    "misaligned": _misaligned,
}
# these change the values
EXPANDED_LAYOUTS: dict[str, Callable[[Tensor, float], Tensor]] = {"expanded": _expanded, "of_no_stride": _of_no_stride}
ALL_LAYOUTS = {**LAYOUTS, **EXPANDED_LAYOUTS}


def in_layout(tensor: Tensor, layout: str, around: float = torch.nan) -> Tensor:
    """Returns a detached tensor of the same shape in another memory layout (for EXPANDED_LAYOUTS with other values).

    around: value in memory between its elements, before and after them.
    """
    detached = tensor.detach()
    if detached.dim() == 0 or detached.numel() == 0:
        return detached.clone()
    return ALL_LAYOUTS[layout](detached, around)
