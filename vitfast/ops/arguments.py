"""Argument checks that the operators share.

Each error names the argument, what was given and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitfast.ops.autocast import autocast_dtype

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# activation -> the argument ``approximate`` of torch.nn.functional.gelu and of ``mlp``
GELU_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


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


def check_rows(name: str, value: Any, shape: str) -> None:
    """Checks for a tensor with at least one dimension; ``shape`` names the dimensions."""
    check_tensor(name, value)
    if value.dim() == 0:
        raise ValueError(f"{name} must have at least one dimension {shape}, got a scalar")


def check_shape(name: str, value: Tensor, expected: Sequence[int], meaning: str) -> None:
    """Checks the exact shape; ``meaning`` explains where the expected shape comes from."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {list(expected)} ({meaning}), got {list(value.shape)}")


def check_like(
    name: str,
    value: Tensor,
    other_name: str,
    other: Tensor,
    shape: Sequence[int],
    meaning: str,
    *,
    same_dtype: bool = True,
) -> None:
    """Checks that ``value`` is on ``other``'s device, has its dtype with ``same_dtype``, and has ``shape``."""
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}, but {other_name} is on {other.device}; move one of them")
    if same_dtype and value.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, but {other_name} has {other.dtype}; convert one of them")
    check_shape(name, value, shape, meaning)


def check_parameters(x: Tensor, parameters: dict[str, tuple[Tensor | None, tuple[int, ...], str]]) -> None:
    """Checks optional parameters, of x's dtype unless autocast casts them; name -> (tensor, shape, its meaning)."""
    in_autocast = autocast_dtype(x) is not None
    for name, (parameter, shape, meaning) in parameters.items():
        if parameter is not None:
            check_tensor(name, parameter)
            check_like(name, parameter, "x", x, shape, meaning, same_dtype=not in_autocast)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Checks an option that takes one of several strings."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def attention_scale(scale: Any, head_dim: int) -> float:
    """Checks the factor of the logits; None is ``head_dim ** -0.5``."""
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    return float(head_dim**-0.5 if scale is None else scale)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records a call with these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def split_residual(residual: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Returns (the residual if the kernel can add it, the residual if its dtype differs and it is added afterwards)."""
    return (residual, None) if residual is None or residual.dtype == dtype else (None, residual)
