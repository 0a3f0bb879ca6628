"""``Crops``: a batch of images in several crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Crops:
    """A batch of several crops of each image; it has the methods of a tensor that data loading and training use.

    Args:
        tensors: a batch ``[B, C, size, size]`` for each crop, crops of one size being consecutive.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def to(self, *args: Any, **kwargs: Any) -> Crops:
        """Converts all crops as ``Tensor.to`` does."""
        return Crops([tensor.to(*args, **kwargs) for tensor in self.tensors])

    def pin_memory(self) -> Crops:
        """Copies all crops to pinned memory."""
        return Crops([tensor.pin_memory() for tensor in self.tensors])

    def tensor_split(self, parts: int) -> list[Crops]:
        """Splits the batch as ``Tensor.tensor_split`` does."""
        split = [tensor.tensor_split(parts) for tensor in self.tensors]
        return [Crops(part) for part in zip(*split, strict=True)]
