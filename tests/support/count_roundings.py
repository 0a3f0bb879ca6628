"""Counts the tensors that are rounded to a float format, by calls of their own or within other operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# raw operator -> the positions of its roundings; an empty list rounds nothing
_FUSED = {"layer_norm_forward": (4, 5), "add_layer_norm_forward": (5, 6, 7)}


class RoundingCounter(TorchDispatchMode):
    """Counts as long as it is active.

    Attributes:
        count: how many tensors were rounded.
        fused: how many of them within another operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = self.fused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "vitfast":
            name = func._schema.name.removeprefix("vitfast::")
            fused = sum(bool(args[position]) for position in _FUSED.get(name, ()))
            self.fused += fused
            self.count += fused + (name in ("quantize_float", "quantize_float_"))
        return func(*args, **(kwargs or {}))


@contextmanager
def count_roundings() -> Iterator[RoundingCounter]:
    """Yields a counter that counts within the context."""
    with RoundingCounter() as counter:
        yield counter
