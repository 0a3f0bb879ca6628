"""What records computations and runs them again, on fixed memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class Recording(Protocol):
    """A computation on fixed memory: it reads ``inputs`` and writes ``outputs``, whenever it is run.

    Attributes:
        inputs: to be filled by who runs it.
        outputs: valid until this or another recording of the same recorder runs.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self) -> None:
        """Computes ``outputs`` of ``inputs``."""


class Recorder(Protocol):
    """Makes recordings. Those of one recorder share memory, so that one of them runs at a time."""

    def record(self, function: Function, examples: Sequence[Tensor]) -> Recording:
        """Records what ``function`` does with tensors like ``examples``."""

    def turn(self) -> AbstractContextManager[object]:
        """What is queued within it follows what was queued in the turn before, on whichever stream that was."""

    def wait(self) -> None:
        """Waits until no recording runs."""

    @property
    def is_possible(self) -> bool:
        """Whether recordings can be made and run now."""


class EagerRecorder:
    """Runs a function anew each time, on fixed memory all the same: for devices without graphs."""

    is_possible = True

    def record(self, function: Function, examples: Sequence[Tensor]) -> Recording:
        """See ``Recorder``."""
        return _EagerRecording(function, fixed_inputs(examples))

    def turn(self) -> AbstractContextManager[object]:
        """See ``Recorder``; the CPU has one queue."""
        return nullcontext()

    def wait(self) -> None:
        """See ``Recorder``; nothing runs behind the host's back."""


class _EagerRecording:
    def __init__(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        self._function = function
        self.inputs = inputs
        self.outputs = function(*inputs)

    def run(self) -> None:
        for fixed, computed in zip(self.outputs, self._function(*self.inputs), strict=True):
            fixed.copy_(computed)


def fixed_inputs(examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns memory for inputs like ``examples``, filled with zeros."""
    return tuple(torch.zeros(one.shape, dtype=one.dtype, device=one.device) for one in examples)
