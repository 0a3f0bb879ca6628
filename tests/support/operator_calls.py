"""Recording of the raw operators that run, and of the tensors that they round to a float format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# raw operator -> positions of its roundings
_FUSED = {"layer_norm_forward": (4, 5), "add_layer_norm_forward": (5, 6, 7)}


class OperatorCalls(TorchDispatchMode):
    """Records the names of the raw operators that run within the context, in order.

    Attributes:
        names: without ``vitfast::``, or another ``namespace``.
    """

    def __init__(self, namespace: str = "vitfast") -> None:
        super().__init__()
        self.namespace = namespace
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == self.namespace:
            self.names.append(func.name().removeprefix(f"{self.namespace}::"))
        return func(*args, **(kwargs or {}))


class RoundingCounter(TorchDispatchMode):
    """Counts the tensors that are rounded, by separate calls or fused into other operators.

    Attributes:
        count: number of rounded tensors.
        fused: number of tensors rounded within another operator.
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
    """Yields a counter that is active within the context."""
    with RoundingCounter() as counter:
        yield counter
