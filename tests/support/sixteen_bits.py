"""All numbers of a 16-bit type, and their spacing."""

from __future__ import annotations

import torch
from torch import Tensor


def every_number(dtype: torch.dtype) -> Tensor:
    """All 65536 numbers of a type as float32, NaN and infinities included, in rows of 64."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float().view(-1, 64)


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of ``dtype`` around x."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp(min=info.tiny)).exponent - 1
    return torch.ldexp(torch.full_like(x, info.eps), exponent)
