"""Clocks: how long some calls took, on the CPU or on a CUDA device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from vitfast.benchmarking.cache_flush import CacheFlush


class Timer(Protocol):
    """What the harness needs of a clock."""

    @property
    def isolates_runs(self) -> bool:
        """Whether every run has to be a sample of its own, since something happens before each."""

    def now(self) -> float:
        """Seconds since some fixed moment, for the time budget."""

    def time(self, run: Callable[[], object], repeats: int) -> float:
        """Calls ``run`` ``repeats`` times and returns the seconds that one call took."""


class CpuTimer:
    """Wall-clock time.

    Args:
        flush: empties the caches before every sample; None leaves them warm.
        clock: returns seconds.
    """

    def __init__(self, flush: CacheFlush | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._flush = flush
        self._clock = clock

    @property
    def isolates_runs(self) -> bool:
        """True with a flush, which comes before each sample."""
        return self._flush is not None

    def now(self) -> float:
        """Seconds of wall-clock time."""
        return self._clock()

    def time(self, run: Callable[[], object], repeats: int) -> float:
        """See ``Timer``."""
        if self._flush is not None:
            self._flush()
        start = self._clock()
        for _ in range(repeats):
            run()
        return (self._clock() - start) / repeats


class CudaTimer:
    """Time on the device, between two CUDA events on the current stream.

    The device is idle at the start of every sample, so that no subject pays for what another has queued. A sample of
    many runs hides the first launch; with a cache flush, which runs on the device as well, it is hidden behind that.

    Args:
        device: the CUDA device.
        flush: empties the L2 cache before every sample; None leaves it warm.
    """

    def __init__(self, device: torch.device, flush: CacheFlush | None = None) -> None:
        self._device = device
        self._flush = flush
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    @property
    def isolates_runs(self) -> bool:
        """True with a flush, which comes before each sample."""
        return self._flush is not None

    def now(self) -> float:
        """Seconds of wall-clock time."""
        return time.perf_counter()

    def time(self, run: Callable[[], object], repeats: int) -> float:
        """See ``Timer``."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            if self._flush is not None:
                self._flush()
            self._start.record()
            for _ in range(repeats):
                run()
            self._end.record()
            torch.cuda.synchronize()
        elapsed_ms: float = self._start.elapsed_time(self._end)
        return elapsed_ms * 1e-3 / repeats


def create_timer(device: torch.device, *, cold_cache: bool = False) -> Timer:
    """Returns the clock for a device.

    Args:
        device: where the subjects run.
        cold_cache: empty the caches before every run.
    """
    flush = CacheFlush(device) if cold_cache else None
    return CudaTimer(device, flush) if device.type == "cuda" else CpuTimer(flush)
