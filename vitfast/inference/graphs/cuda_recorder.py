"""CUDA graphs: all kernels of a computation start with one call of the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vitfast.inference.graphs.recorder import Function, Recording, fixed_inputs

# libraries choose algorithms and allocate workspaces in the first runs, which a graph must not hold
_WARM_UP_RUNS = 3


class CudaRecorder:
    """Captures CUDA graphs, all of them in one memory pool: they never run at the same time.

    Args:
        device: a CUDA device with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._side = torch.cuda.Stream()
            self._last_turn = torch.cuda.Event()

    @property
    def is_possible(self) -> bool:
        """See ``Recorder``: within the capture of another graph a computation is part of that one."""
        return not torch.cuda.is_current_stream_capturing()

    def record(self, function: Function, examples: Sequence[Tensor]) -> Recording:
        """See ``Recorder``; called within a turn."""
        inputs = fixed_inputs(examples)
        current = torch.cuda.current_stream()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            for _ in range(_WARM_UP_RUNS):
                function(*inputs)
        current.wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        # other threads may go on using CUDA, as those that pin memory for a data loader do
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            outputs = function(*inputs)
        return _CudaRecording(graph, inputs, outputs)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See ``Recorder``."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._last_turn)
            try:
                yield
            finally:
                self._last_turn.record(stream)

    def wait(self) -> None:
        """See ``Recorder``."""
        self._last_turn.synchronize()


class _CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self._graph = graph
        self.inputs = inputs
        self.outputs = outputs

    def run(self) -> None:
        self._graph.replay()
