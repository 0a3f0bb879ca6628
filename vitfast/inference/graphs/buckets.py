"""How many images at a time: a batch in parts, each of a size that a recording exists for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Neighbouring images of a batch that run together.

    Attributes:
        start: the first image.
        count: how many there are, at least 1.
        bucket: how many the recording takes, ``count`` or more: a power of two.
    """

    start: int
    count: int
    bucket: int


def split_batch(batch: int, largest: int) -> list[Part]:
    """Splits a batch: as many parts of the largest size as fit, and the rest in the next larger power of two.

    Args:
        batch: number of images.
        largest: the largest bucket, a power of two.

    Returns:
        The parts in order; none for no image.
    """
    parts = []
    for start in range(0, batch, largest):
        count = min(largest, batch - start)
        parts.append(Part(start, count, bucket_of(count)))
    return parts


def bucket_of(count: int) -> int:
    """Returns the smallest power of two that is at least ``count``, of at least one image."""
    return 1 << (count - 1).bit_length()


def is_bucket(size: int) -> bool:
    """Whether ``size`` is a power of two."""
    return size > 0 and size & (size - 1) == 0
