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
        return _EagerRecording(function, fixed_inputs(examples))

    def turn(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait(self) -> None:
        pass


class _EagerRecording:
    def __init__(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        self._function = function
        self.inputs = inputs
        self.outputs = function(*inputs)

    def run(self) -> None:
        for fixed, computed in zip(self.outputs, self._function(*self.inputs), strict=True):
            fixed.copy_(computed)
