"""What a matrix product costs, for torch's counter of operations."""

from __future__ import annotations

import math
from typing import Any


def product_flops(x: Any, outputs: int) -> int:
    """Floating-point operations of ``x wᵀ``, two a multiply-add: x's sizes ``[..., K]`` and w's ``outputs`` rows."""
    operations: int = 2 * math.prod(x) * outputs
    return operations
