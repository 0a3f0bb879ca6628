"""CUDA graphs: one call of the host launches all kernels of a computation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vitfast.inference.cuda.graph_cache import Function, Recording, fixed_inputs

# libraries choose algorithms and allocate workspaces in the first runs, which must not be captured
_WARM_UP_RUNS = 3


class CudaRecorder:
    """A ``Recorder`` that captures CUDA graphs in one memory pool: they never run at the same time.

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
        """False during the capture of another graph, which includes the computation."""
        return not torch.cuda.is_current_stream_capturing()

    def record(self, function: Function, examples: Sequence[Tensor]) -> Recording:
        inputs = fixed_inputs(examples)
        current = torch.cuda.current_stream()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            for _ in range(_WARM_UP_RUNS):
                function(*inputs)
        current.wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        # other threads may use CUDA meanwhile, for example to pin memory for a data loader
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            outputs = function(*inputs)
        return _CudaRecording(graph, inputs, outputs)

    @contextmanager
    def turn(self) -> Iterator[None]:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._last_turn)
            try:
                yield
            finally:
                self._last_turn.record(stream)

    def wait(self) -> None:
        self._last_turn.synchronize()


class _CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self._graph = graph
        self.inputs = inputs
        self.outputs = outputs

    def run(self) -> None:
        self._graph.replay()
