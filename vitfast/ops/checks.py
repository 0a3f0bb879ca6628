"""Argument checks that the operators share; each error names the argument, what was given and what is allowed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(name: str, value: Any, *, ndim: int | None = None, shape: str = "") -> None:
    """Checks for a dense floating-point tensor, with ``ndim`` dimensions if given (``shape`` names them)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; call .to_dense() first")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")
    if ndim is not None and value.dim() != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions {shape}, got shape {list(value.shape)}")


def check_like(name: str, value: Tensor, other_name: str, other: Tensor, *, same_dtype: bool = True) -> None:
    """Checks that ``value`` lies on ``other``'s device and, unless told otherwise, has its dtype."""
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}, but {other_name} is on {other.device}; move one of them")
    if same_dtype and value.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, but {other_name} has {other.dtype}; convert one of them")


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Checks the exact shape; ``meaning`` explains where the expected one comes from."""
    if tuple(value.shape) != expected:
        raise ValueError(f"{name} must have shape {list(expected)} ({meaning}), got {list(value.shape)}")


def check_eps(eps: Any) -> None:
    """Checks LayerNorm's epsilon."""
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not eps >= 0.0:
        raise ValueError(f"eps must be zero or positive, got {eps}")
