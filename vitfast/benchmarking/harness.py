"""Times several cases in one run, in interleaved rounds, until the time budget is spent.

Programs that are timed one after the other run on different machines: clock frequency, temperature and other load
drift. Here every round runs every case once, each round in a different order, so that drift affects all of them, and
ratios are formed within a round.
"""

from __future__ import annotations

import gc
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# the shortest sample: the cost of reading the clock (about 100 ns) is then below 0.02 %
MIN_SAMPLE_S = 1e-3
MIN_ROUNDS = 5
MAX_ROUNDS = 200
# share of the budget for warm-up: allocations, thread pools, clock frequency, compilation
WARM_UP_SHARE = 0.15
MIN_WARM_UP_RUNS = 2

_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CPU_CACHE_BYTES = 64 * 2**20
# several times the L2 of current GPUs (H200: 50 MB, B200: 126 MB); DeepGEMM and FlashMLA write as much
_CUDA_FLUSH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Case:
    """One implementation to time.

    Attributes:
        name: its name in the table, e.g. ``"vitfast"`` or ``"timm"``.
        run: does the whole work once; the returned value is ignored.
        output: returns the result that is checked against the reference, as one tensor; None: nothing is checked.
        is_limit: a lower bound that does less work than the others (a copy beside a rounding), not a competitor.
        gflop: floating-point operations of a run in 1e9, if they differ from the table's.
        gigabyte: bytes that a run reads and writes in 1e9, if they differ from the table's.
    """

    name: str
    run: Callable[[], object]
    output: Callable[[], Tensor] | None = None
    is_limit: bool = False
    gflop: float | None = None
    gigabyte: float | None = None


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
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarizes samples; quartiles are interpolated between samples.

        Raises:
            ValueError: there are no samples.
        """
        if not samples:
            raise ValueError("a spread needs at least one sample")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)

    @classmethod
    def of_ratios(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
        """Summarizes the ratios of pairs. Both samples of a round see the same machine state, so ratios spread less.

        Raises:
            ValueError: the sequences differ in length or are empty.
        """
        return cls.of([upper / lower for upper, lower in zip(numerators, denominators, strict=True)])

    def scaled(self, factor: float) -> Spread:
        """The spread in another unit; ``factor`` is positive."""
        return Spread(self.median * factor, self.lower * factor, self.upper * factor)


@dataclass(frozen=True)
class Timing:
    """The samples of one case.

    Attributes:
        case: the case.
        samples_s: seconds per run, one sample per round; an index is the same round for all cases.
        repeats: runs per sample; the sample is their mean.
    """

    case: Case
    samples_s: list[float]
    repeats: int

    @property
    def time_s(self) -> Spread:
        """Seconds per run."""
        return Spread.of(self.samples_s)

    @property
    def fastest_s(self) -> float:
        """Seconds per run in the shortest sample."""
        return min(self.samples_s)

    def speedup_over(self, other: Timing) -> Spread:
        """How many times faster this case is than ``other``: the ratio of their times within each round."""
        return Spread.of_ratios(other.samples_s, self.samples_s)


def measure(cases: Sequence[Case], timer: Timer, budget_s: float) -> list[Timing]:
    """Times cases against each other.

    Args:
        cases: at least one, with different names.
        timer: the clock of their device.
        budget_s: seconds for warm-up and rounds together. There are at least ``MIN_ROUNDS`` and at most ``MAX_ROUNDS``
            rounds, whatever the budget.

    Returns:
        One timing per case, in their order.

    Raises:
        ValueError: there is no case, or two have the same name.
    """
    names = [case.name for case in cases]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"at least one case is needed, and all need different names; got {names}")
    start = timer.now()
    samples: list[list[float]] = [[] for _ in cases]
    with _garbage_collection_off():
        repeats = [_warm_up(case, timer, budget_s * WARM_UP_SHARE / len(cases)) for case in cases]
        rounds_start = timer.now()
        for index in range(MAX_ROUNDS):
            elapsed = timer.now() - rounds_start
            is_time_up = timer.now() - start + (elapsed / index if index else 0.0) > budget_s
            if index >= MIN_ROUNDS and is_time_up:
                break
            for position in round_order(index, len(cases)):
                samples[position].append(timer.time(cases[position].run, repeats[position]))
            gc.collect(0)  # between samples, for reference cycles that cases leave behind
    return [Timing(*parts) for parts in zip(cases, samples, repeats, strict=True)]


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
        durations.append(timer.time(case.run, 1))
    if timer.isolates_runs:
        return 1
    return max(1, math.ceil(MIN_SAMPLE_S / max(min(durations), 1e-9)))


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Keeps Python's garbage collector from running within a sample, as ``timeit`` does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class CacheFlush:
    """Evicts everything from the caches by writing a buffer that is larger than they are.

    Args:
        device: the device whose caches are flushed.
        size_bytes: size of the buffer; None: twice the CPU's last-level cache, or 512 MiB on a GPU.
    """

    def __init__(self, device: torch.device, size_bytes: int | None = None) -> None:
        if size_bytes is None:
            size_bytes = _CUDA_FLUSH_BYTES if device.type == "cuda" else 2 * last_level_cache_bytes()
        self._buffer = torch.zeros(max(size_bytes // 8, 1), dtype=torch.int64, device=device)

    def __call__(self) -> None:
        """Reads and writes the whole buffer."""
        self._buffer.add_(1)


class Timer:
    """Wall-clock time.

    Args:
        flush: called before every sample; None leaves the caches warm.
        clock: returns seconds.

    Attributes:
        now: the clock.
        isolates_runs: whether each sample is a single run, because of the flush before it.
    """

    def __init__(self, flush: Callable[[], None] | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.now = clock
        self.isolates_runs = flush is not None
        self._flush: Callable[[], None] = flush or (lambda: None)

    def time(self, run: Callable[[], object], repeats: int) -> float:
        """Calls ``run`` ``repeats`` times and returns the seconds per call."""
        self._flush()
        start = self.now()
        for _ in range(repeats):
            run()
        return (self.now() - start) / repeats


class CudaTimer(Timer):
    """Time on a CUDA device between two events on the current stream.

    The device is idle when a sample starts, so that no case pays for work that another one has queued. Repeated runs
    hide the latency of the first launch; so does a cache flush, which runs on the device.
    """

    def __init__(self, device: torch.device, flush: Callable[[], None] | None = None) -> None:
        super().__init__(flush)
        self._device = device
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def time(self, run: Callable[[], object], repeats: int) -> float:
        """Calls ``run`` ``repeats`` times and returns the seconds per call."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            self._flush()
            self._start.record()
            for _ in range(repeats):
                run()
            self._end.record()
            torch.cuda.synchronize()
        milliseconds: float = self._start.elapsed_time(self._end)
        return milliseconds * 1e-3 / repeats


def create_timer(device: torch.device, *, cold_cache: bool = False) -> Timer:
    """Returns the timer for a device; ``cold_cache`` flushes the caches before every run."""
    flush = CacheFlush(device) if cold_cache else None
    return CudaTimer(device, flush) if device.type == "cuda" else Timer(flush)


def last_level_cache_bytes(folder: Path = _CPU_CACHES) -> int:
    """Size of the first core's largest cache in bytes; 64 MiB if the system does not report it."""
    return max(cache_sizes(folder).values(), default=_UNKNOWN_CPU_CACHE_BYTES)


def cache_sizes(folder: Path = _CPU_CACHES) -> dict[str, int]:
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
