"""Whether implementations compute the same thing: a fast wrong answer is no result."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# largest relative L2 distance to a reference in a wider type that counts as rounding and no more, for whole models
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2, "fp16_32": 2e-2, "int8": 2e-1}


def relative_l2(result: Tensor, reference: Tensor) -> float:
    """Returns ``|result - reference| / |reference|``, computed in float64.

    Args:
        result: any shape.
        reference: the same shape.

    Returns:
        0 for equal tensors, also where both are zero; NaN if either holds one, or an infinity that the other lacks.

    Raises:
        ValueError: the shapes differ.
    """
    if result.shape != reference.shape:
        raise ValueError(f"result has shape {list(result.shape)}, but reference has {list(reference.shape)}")
    if torch.equal(result, reference):
        return 0.0
    reference = reference.detach().to("cpu", torch.float64)
    difference = result.detach().to("cpu", torch.float64) - reference
    return float(difference.norm() / reference.norm())


def agrees(error: float, precision: str) -> bool:
    """True for an error that the precision's rounding explains; never for NaN."""
    return error <= TOLERANCE[precision]


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """Lays several results out as one vector in float32 or float64, so that one distance covers all of them."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in flat) else torch.float32
    return torch.cat([tensor.to(dtype) for tensor in flat])
