"""A recorder for ``GraphCache`` on devices without graphs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from vitfast.inference.cuda.graph_cache import Function, Recording, fixed_inputs


class EagerRecorder:
    """Calls the function at each run, on fixed memory as a CUDA graph."""

    is_possible = True

    def record(self, function: Function, examples: Sequence[Tensor]) -> Recording:
        inputs = fixed_inputs(examples)
        outputs = function(*inputs)

        def run() -> None:
            for fixed, computed in zip(outputs, function(*inputs), strict=True):
                fixed.copy_(computed)

        return Recording(run, inputs, outputs)

    def turn(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait(self) -> None:
        pass
