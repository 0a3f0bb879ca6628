"""Every float32 there is, chunk by chunk, and a comparison of roundings over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ALL = 2**32


def every_float(device: torch.device, start: int = 0, stop: int = ALL, chunk: int = 2**26) -> Iterator[Tensor]:
    """Yields the float32 with the bit patterns from ``start`` to ``stop``."""
    for first in range(start, stop, chunk):
        # int32's bits run from 0 up and then from the smallest negative number up
        bits = torch.arange(first, min(first + chunk, stop), device=device)
        yield torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32).view(torch.float32)


def count_differences(actual: Tensor, expected: Tensor) -> int:
    """How many elements differ in their bits, any NaN being like any other."""
    same = (actual.view(torch.int32) == expected.view(torch.int32)) | (actual.isnan() & expected.isnan())
    return same.numel() - int(same.sum())


def assert_same_roundings(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], chunks: Iterator[Tensor]
) -> int:
    """Holds that two roundings give the same bits; returns how many numbers were rounded."""
    total = 0
    for x in chunks:
        actual, expected = one(x), other(x)
        differences = count_differences(actual, expected.to(actual.device))
        assert not differences, f"{differences} differ between {float(x[0])!r} and {float(x[-1])!r}"
        total += x.numel()
    return total
