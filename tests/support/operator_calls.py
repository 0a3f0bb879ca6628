"""Which of vitfast's raw operators run."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCalls(TorchDispatchMode):
    """Within this context the operators of vitfast that run leave their names, in their order.

    Attributes:
        names: without ``vitfast::``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "vitfast":
            self.names.append(func.name().removeprefix("vitfast::"))
        return func(*args, **(kwargs or {}))
