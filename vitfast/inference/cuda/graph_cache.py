"""Runs batches of any size by recordings (CUDA graphs) of a few sizes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
# 9 buckets up to 256 images, for a whole model and for three exits
_MAX_RECORDINGS = 36
# libraries choose algorithms and allocate workspaces in the first runs, which must not be captured
_WARM_UP_RUNS = 3


class Recording(NamedTuple):
    """A computation on fixed memory."""

    run: Callable[[], None]  # reads the inputs and writes the outputs
    inputs: tuple[Tensor, ...]  # filled by the caller
    outputs: tuple[Tensor, ...]  # valid until a recording of the same recorder runs


@dataclass(frozen=True)
class Part:
    """Consecutive images of a batch that run together, in a recording for a batch of ``bucket``, a power of two."""

    start: int
    count: int
    bucket: int


class CudaRecorder:
    """Captures CUDA graphs in one memory pool: only one of them runs at a time.

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
        """Records ``function`` for tensors like ``examples``; called within a turn."""
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
        return Recording(graph.replay, inputs, outputs)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A context whose work runs after that of the previous turn, on whichever stream that was."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._last_turn)
            try:
                yield
            finally:
                self._last_turn.record(stream)

    def wait(self) -> None:
        """Waits until no recording runs."""
        self._last_turn.synchronize()


class GraphCache:
    """Recordings of functions for batches of 1, 2, 4 … images, made on first use.

    A batch between two sizes is padded to the larger one; a batch above the largest size runs in parts. Functions must
    treat images independently. Threads may share a cache; they take turns. The least recently used recording is dropped
    when there are too many. A copied or unpickled cache starts empty.

    Args:
        make_recorder: makes the ``CudaRecorder`` on first use.
        largest: the largest batch that is recorded, a power of two.
        max_recordings: how many are kept.
    """

    def __init__(
        self, make_recorder: Callable[[], CudaRecorder], largest: int, max_recordings: int = _MAX_RECORDINGS
    ) -> None:
        self.largest = largest
        self._make_recorder = make_recorder
        self._max_recordings = max_recordings
        self._recorder: CudaRecorder | None = None
        self._recordings: OrderedDict[tuple[Any, ...], Recording] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, name: str, function: Function, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Computes ``function(*tensors)``.

        Args:
            name: identifies the function.
            function: takes and returns tensors, all with the images in their first dimension.
            tensors: its arguments.

        Returns:
            New tensors.
        """
        batch = tensors[0].shape[0]
        with self._lock:
            recorder = self._recorder = self._recorder or self._make_recorder()
        if batch == 0 or not recorder.is_possible:
            return function(*tensors)
        # recordings outlive this call, so their memory must not belong to inference mode
        with self._lock, torch.inference_mode(False), torch.no_grad(), recorder.turn():
            results: tuple[Tensor, ...] = ()
            for part in split_batch(batch, self.largest):
                outputs = self._run_part(recorder, name, function, tensors, part)
                if not results:
                    results = tuple(one.new_empty((batch, *one.shape[1:])) for one in outputs)
                for whole, piece in zip(results, outputs, strict=True):
                    whole[part.start : part.start + part.count].copy_(piece[: part.count])
        return results

    def _run_part(
        self, recorder: CudaRecorder, name: str, function: Function, tensors: tuple[Tensor, ...], part: Part
    ) -> tuple[Tensor, ...]:
        """Returns the results of a part, in memory that the next part overwrites."""
        kinds = tuple((tensor.dtype, tensor.shape[1:]) for tensor in tensors)
        key = (name, part.bucket, kinds)
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) >= self._max_recordings:
                recorder.wait()
                self._recordings.popitem(last=False)
            examples = [tensor[:1].expand(part.bucket, *tensor.shape[1:]) for tensor in tensors]
            recording = recorder.record(function, examples)
            self._recordings[key] = recording
        self._recordings.move_to_end(key)
        for fixed, given in zip(recording.inputs, tensors, strict=True):
            # the rest of the bucket holds earlier images, whose results are not read
            fixed[: part.count].copy_(given[part.start : part.start + part.count])
        recording.run()
        return recording.outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make_recorder, self.largest, self._max_recordings)


def split_batch(batch: int, largest: int) -> list[Part]:
    """Splits a batch into parts of ``largest`` images, a power of two, and a rest padded to a power of two."""
    counts = {start: min(largest, batch - start) for start in range(0, batch, largest)}
    return [Part(start, count, 1 << (count - 1).bit_length()) for start, count in counts.items()]


def is_bucket(size: int) -> bool:
    """Whether ``size`` is a power of two."""
    return size > 0 and size & (size - 1) == 0


def fixed_inputs(examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Allocates zeros with the shapes, dtypes and devices of ``examples``, also expanded ones."""
    return tuple(torch.zeros(one.shape, dtype=one.dtype, device=one.device) for one in examples)
