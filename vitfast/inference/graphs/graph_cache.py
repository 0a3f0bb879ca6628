"""Runs batches of any size by recordings of a few sizes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitfast.inference.graphs.buckets import Part, split_batch
from vitfast.inference.graphs.recorder import Recorder, Recording

# 9 buckets up to 256 images, of a whole model and of three exits
_MAX_RECORDINGS = 36


class GraphCache:
    """Recordings of some functions for batches of 1, 2, 4 … images, made when they are first needed.

    A batch between two sizes is filled up to the larger one; a batch above the largest runs in parts. Images must not
    meet each other in a function. Threads may share a cache; they take turns. The least recently used recording goes
    when there are too many. A copy of a cache, or one from a pickle, starts empty.

    Args:
        make_recorder: makes what records.
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

    def run(
        self, name: str, function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Computes ``function(*tensors)``.

        Args:
            name: of the function; one name always means one function.
            function: takes tensors and returns tensors, all with the images in their first dimension.
            tensors: its arguments.

        Returns:
            New tensors.
        """
        batch = tensors[0].shape[0]
        recorder = self._started()
        if batch == 0 or not recorder.is_possible:
            return function(*tensors)
        # recordings outlive this call, so that their memory must not be inference mode's
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
        self,
        recorder: Recorder,
        name: str,
        function: Callable[..., tuple[Tensor, ...]],
        tensors: tuple[Tensor, ...],
        part: Part,
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
            # what stays behind these images is left of earlier ones; nobody reads what becomes of it
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
