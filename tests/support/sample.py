"""One call of an operator: a name and keyword arguments; reproducible random tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Sample:
    """The keyword arguments of one call."""

    name: str
    arguments: dict[str, Any]
    cancelling_terms: int = 0  # some gradients are zero because sums of this many products cancel

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The floating-point tensor arguments."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}

    @property
    def numel(self) -> int:
        """Total number of elements of the tensor arguments."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def replace(self, **arguments: Any) -> Sample:
        """Returns the same call with some arguments replaced."""
        return Sample(self.name, {**self.arguments, **arguments}, self.cancelling_terms)

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """Returns the same call with ``function`` applied to each tensor argument."""
        return self.replace(**{name: function(tensor) for name, tensor in self.tensors.items()})

    def to(self, dtype: torch.dtype) -> Sample:
        """Returns the same call in another dtype."""
        return self.map(lambda tensor: tensor.to(dtype))

    def requires_grad(self) -> Sample:
        """Returns the same call with new leaf tensors of the same memory layout that require gradients."""
        return self.map(lambda tensor: tensor.detach().requires_grad_())

    def __str__(self) -> str:
        parts = [
            f"{name}={list(value.shape)} {value.dtype} stride {list(value.stride())}"
            if isinstance(value, Tensor)
            else f"{name}={value!r}"
            for name, value in self.arguments.items()
        ]
        return f"{self.name}({', '.join(parts)})"


def structure(arguments: Any) -> str:
    """Describes what of a call's arguments, in any containers, decides which Python code runs around the kernel."""

    def of_one(value: Any) -> Any:
        if isinstance(value, Tensor):
            last = value.shape[-1] if value.dim() else 1
            sizes = (value.dim(), value.numel() == 0, last % 8 == 0, last > 128)
            return (*sizes, value.requires_grad, value.is_contiguous(), str(value.dtype))
        return value if isinstance(value, bool | str) else type(value).__name__

    return str(tree_map(of_one, arguments))


@dataclass
class Make:
    """Makes reproducible tensors of one dtype: the same numbers for every dtype, rounded to it."""

    dtype: torch.dtype = torch.float32
    seed: int = 0
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        """Normally distributed numbers."""
        return (mean + scale * torch.randn(shape, generator=self._generator, dtype=torch.float64)).to(self.dtype)


def fuzz_seed() -> int:
    """Returns the seed of the fuzz tests: VITFAST_FUZZ_SEED, or 0."""
    return int(os.environ.get("VITFAST_FUZZ_SEED", "0"))
