"""Runs batches of any size by recordings (CUDA graphs) of a few sizes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
# 9 buckets up to 256 images, for a whole model and for three exits
_MAX_RECORDINGS = 36


class Recording(Protocol):
    """A computation on fixed memory: each run reads ``inputs`` and writes ``outputs``.

    Attributes:
        inputs: to be filled by the caller.
        outputs: valid until this or another recording of the same recorder runs.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self) -> None:
        """Computes ``outputs`` from ``inputs``."""


class Recorder(Protocol):
    """Makes recordings, which share memory: only one of them runs at a time."""

    def record(self, function: Function, examples: Sequence[Tensor]) -> Recording:
        """Records ``function`` for tensors like ``examples``; called within a turn."""

    def turn(self) -> AbstractContextManager[object]:
        """Returns a context whose work runs after that of the previous turn, on whichever stream that was."""

    def wait(self) -> None:
        """Waits until no recording runs."""

    @property
    def is_possible(self) -> bool:
        """Whether recordings can be made and run now."""


@dataclass(frozen=True)
class Part:
    """Consecutive images of a batch that run together.

    Attributes:
        start: the first image.
        count: number of images, at least 1.
        bucket: batch size of the recording, ``count`` or more: a power of two.
    """

    start: int
    count: int
    bucket: int


class GraphCache:
    """Recordings of functions for batches of 1, 2, 4 … images, made on first use.

    A batch between two sizes is padded to the larger one; a batch above the largest size runs in parts. Functions must
    treat images independently. Threads may share a cache; they take turns. The least recently used recording is dropped
    when there are too many. A copied or unpickled cache starts empty.

    Args:
        make_recorder: makes the recorder on first use.
        largest: the largest batch that is recorded, a power of two.
        max_recordings: how many are kept.
    """

    def __init__(
        self, make_recorder: Callable[[], Recorder], largest: int, max_recordings: int = _MAX_RECORDINGS
    ) -> None:
        self.largest = largest
        self._make_recorder = make_recorder
        self._max_recordings = max_recordings
        self._recorder: Recorder | None = None
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
        recorder = self._started()
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

    def _started(self) -> Recorder:
        with self._lock:
            if self._recorder is None:
                self._recorder = self._make_recorder()
            return self._recorder

    def _run_part(
        self, recorder: Recorder, name: str, function: Function, tensors: tuple[Tensor, ...], part: Part
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

    def __getstate__(self) -> dict[str, Any]:
        return {
            "make_recorder": self._make_recorder,
            "largest": self.largest,
            "max_recordings": self._max_recordings,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def split_batch(batch: int, largest: int) -> list[Part]:
    """Splits a batch into parts of ``largest`` images, a power of two, and a rest padded to a power of two."""
    parts = []
    for start in range(0, batch, largest):
        count = min(largest, batch - start)
        parts.append(Part(start, count, bucket_of(count)))
    return parts


def bucket_of(count: int) -> int:
    """Returns the smallest power of two that is at least ``count``, for at least one image."""
    return 1 << (count - 1).bit_length()


def is_bucket(size: int) -> bool:
    """Whether ``size`` is a power of two."""
    return size > 0 and size & (size - 1) == 0


def fixed_inputs(examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Allocates zeros with the shapes, dtypes and devices of ``examples``, also expanded ones."""
    return tuple(torch.zeros(one.shape, dtype=one.dtype, device=one.device) for one in examples)
