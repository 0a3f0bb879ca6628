"""Times several cases in one run, in interleaved rounds, until the time budget is spent.

Programs that are timed one after the other run on different machines: clock frequency, temperature and other load
drift. Here every round runs every case once, each round in a different order, so that drift affects all of them, and
ratios are formed within a round.
"""

from __future__ import annotations

import gc
import math
import re
import time
import timeit
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# the shortest sample: the cost of reading the clock (about 100 ns) is then below 0.02 %
MIN_SAMPLE_S = 1e-3
# the same for cases in processes of their own, which have to be woken
MIN_PROCESS_SAMPLE_S = 0.1
MIN_ROUNDS = 5
MAX_ROUNDS = 200
# share of the budget for warm-up: allocations, thread pools, clock frequency, compilation
WARM_UP_SHARE = 0.15
MIN_WARM_UP_RUNS = 2

_UNKNOWN_CPU_CACHE_BYTES = 64 * 2**20
# several times the L2 of current GPUs (H200: 50 MB, B200: 126 MB); DeepGEMM and FlashMLA write as much
_CUDA_FLUSH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Case:
    """One implementation to time."""

    name: str  # in the table, e.g. "vitfast" or "timm"
    run: Callable[[], object]  # does the whole work once
    output: Callable[[], Tensor] | None = None  # the result that is checked against the reference; None: nothing is
    is_limit: bool = False  # a lower bound that does less work than the others (a copy beside a rounding)
    gflop: float | None = None  # floating-point operations of a run in 1e9, if they differ from the table's
    gigabyte: float | None = None  # bytes that a run reads and writes in 1e9, if they differ from the table's
    # does the work so many times in another process, which measures it, and returns the seconds of each run
    times: Callable[[int], list[float]] | None = None

    def sample(self, timer: Timer, repeats: int) -> list[float]:
        """Returns the seconds of each of ``repeats`` runs, or their mean where another process does not time them."""
        return [timer.time(self.run, repeats)] if self.times is None else self.times(repeats)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some samples.

    Other load on the machine makes single samples much longer and never shorter, so that medians and quartiles are
    more robust than mean and standard deviation.
    """

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        """Summarizes at least one sample; quartiles are interpolated between samples."""
        return cls(*np.quantile(list(samples), (0.5, 0.25, 0.75)).tolist())


@dataclass(frozen=True)
class Timing:
    """The samples of one case."""

    case: Case
    samples_s: list[float]  # seconds per run, one sample per round; an index is the same round for all cases
    repeats: int  # runs per sample; the sample is their mean
    runs_s: list[float] = field(default_factory=list)  # seconds of every run; empty if only means were measured

    def speedup_over(self, other: Timing) -> Spread:
        """How many times faster this case is than ``other``: the ratio of their times within each round.

        Both samples of a round see the same machine state, so ratios spread less than times.
        """
        return Spread.of(theirs / own for theirs, own in zip(other.samples_s, self.samples_s, strict=True))


def measure(cases: Sequence[Case], timer: Timer, budget_s: float) -> list[Timing]:
    """Times cases against each other.

    Args:
        cases: at least one, with different names.
        timer: of their device.
        budget_s: seconds for warm-up and rounds together. There are at least ``MIN_ROUNDS`` and at most ``MAX_ROUNDS``
            rounds, whatever the budget.
    """
    names = [case.name for case in cases]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"at least one case is needed, and all need different names; got {names}")
    start = timer.now()
    samples: list[list[float]] = [[] for _ in cases]
    runs: list[list[float]] = [[] for _ in cases]
    repeats = [_warm_up(case, timer, budget_s * WARM_UP_SHARE / len(cases)) for case in cases]
    rounds_start = timer.now()
    for index in range(MAX_ROUNDS):
        elapsed = timer.now() - rounds_start
        is_time_up = timer.now() - start + (elapsed / index if index else 0.0) > budget_s
        if index >= MIN_ROUNDS and is_time_up:
            break
        for position in round_order(index, len(cases)):
            durations = cases[position].sample(timer, repeats[position])
            samples[position].append(sum(durations) / len(durations))
            runs[position] += durations if cases[position].times else []
        gc.collect(0)  # between samples, for reference cycles that cases leave behind
    return [Timing(*parts) for parts in zip(cases, samples, repeats, runs, strict=True)]


def round_order(index: int, count: int) -> list[int]:
    """The order of ``count`` cases in round ``index``: rounds come in pairs of opposite order, and pairs rotate.

    Two cases run as AB BA BA AB …, three as ABC CBA BCA ACB CAB BAC …: each runs as often before as after any other.
    """
    shift = index // 2 % count
    order = [(position + shift) % count for position in range(count)]
    return order[::-1] if index % 2 else order


def _warm_up(case: Case, timer: Timer, budget_s: float) -> int:
    """Runs a case for a while; returns how many runs make a sample long enough to time."""
    start = timer.now()
    durations: list[float] = []
    while len(durations) < MIN_WARM_UP_RUNS or timer.now() - start < budget_s:
        durations += case.sample(timer, 1)
    if timer.cold_cache:
        return 1
    shortest_s = MIN_SAMPLE_S if case.times is None else MIN_PROCESS_SAMPLE_S
    return max(1, math.ceil(shortest_s / max(min(durations), 1e-9)))


class Timer:
    """Times runs by the wall clock, or on a CUDA device between two events on the current stream.

    A CUDA device is idle when a sample starts, so that no case pays for work that another one has queued. Repeated runs
    hide the latency of the first launch; so does a cache flush, which runs on the device.

    Args:
        device: where the cases run.
        cold_cache: flush the caches before every sample, which is then a single run.
        clock: returns seconds.
    """

    def __init__(
        self, device: torch.device, *, cold_cache: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.now = clock
        self.cold_cache = cold_cache
        self._device = device
        self._flush = cache_flush(device) if cold_cache else lambda: None

    def time(self, run: Callable[[], object], repeats: int) -> float:
        """Calls ``run`` ``repeats`` times without garbage collection and returns the seconds per call."""
        timer = timeit.Timer(run, timer=self.now)
        if self._device.type != "cuda":
            self._flush()
            return timer.timeit(repeats) / repeats
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            self._flush()
            start.record()
            timer.timeit(repeats)
            end.record()
            torch.cuda.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds * 1e-3 / repeats


def repeated(runs: Sequence[Callable[[], object]], device: torch.device, calls: int) -> Callable[[], object]:
    """Returns a function that makes ``calls`` calls, of each run in turn.

    On a CUDA device it replays a graph of the calls, with no time of the CPU between them. The results of the last call
    of each run stay allocated, so that runs with different inputs also write to different memory.
    """
    if device.type != "cuda":
        return lambda: [runs[index % len(runs)]() for index in range(calls)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    results: list[object] = [None] * len(runs)
    with torch.cuda.stream(stream):  # libraries initialize and autotune before the capture
        for run in (*runs, *runs):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(calls):
            results[index % len(runs)] = runs[index % len(runs)]()
    return partial(_replay, graph, results)


def _replay(graph: torch.cuda.CUDAGraph, results: list[object]) -> None:
    graph.replay()


def cache_flush(device: torch.device) -> Callable[[], object]:
    """Returns a function that evicts everything from a device's caches: it writes a buffer larger than they are."""
    last_level_bytes = max(cache_sizes().values(), default=_UNKNOWN_CPU_CACHE_BYTES)
    size_bytes = _CUDA_FLUSH_BYTES if device.type == "cuda" else 2 * last_level_bytes
    return partial(torch.zeros(size_bytes, dtype=torch.uint8, device=device).add_, 1)


def cache_sizes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """The first core's data caches as Linux describes them: ``{"L1": bytes, …}``; empty if it does not."""
    sizes = {}
    for entry in sorted(folder.glob("index*")):
        try:
            kind, level, size = ((entry / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        number = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and number:
            sizes[f"L{level}"] = int(number[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[number[2]]
    return sizes
