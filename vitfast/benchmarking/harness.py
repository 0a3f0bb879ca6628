"""Measures several subjects in one run: interleaved rounds, each in another order, until the time is up.

Two programs that are timed one after the other are timed on two machines: clock frequency, temperature and neighbours
drift. Here every round runs every subject once, so that drift meets them all, and ratios are formed within a round.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vitfast.benchmarking.spread import Spread
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.timer import Timer

# the shortest sample: the clock's own cost (some 100 ns) is then below 0.02 %
MIN_SAMPLE_S = 1e-3
MIN_ROUNDS = 5
MAX_ROUNDS = 200
# share of the time that warms up: allocations, thread pools, clock frequency, compilation
WARM_UP_SHARE = 0.15
MIN_WARM_UP_RUNS = 2


@dataclass(frozen=True)
class Measurement:
    """What one subject took.

    Attributes:
        subject: what was measured.
        samples_s: seconds of one run, one sample a round; the same index is the same round for all subjects.
        repeats: how many runs a sample is the mean of.
    """

    subject: Subject
    samples_s: list[float]
    repeats: int

    @property
    def time_s(self) -> Spread:
        """Seconds of one run."""
        return Spread.of(self.samples_s)

    @property
    def fastest_s(self) -> float:
        """Seconds of one run in the shortest sample."""
        return min(self.samples_s)

    def speedup_over(self, other: Measurement) -> Spread:
        """How many times faster this subject is than ``other``: the other's time over its own, round by round."""
        return Spread.of_ratios(other.samples_s, self.samples_s)


def measure(subjects: Sequence[Subject], timer: Timer, budget_s: float) -> list[Measurement]:
    """Measures subjects against each other.

    Args:
        subjects: at least one, with different names.
        timer: the clock of the device that they run on.
        budget_s: seconds for warm-up and rounds together. At least ``MIN_ROUNDS`` rounds are run even if they take
            longer, at most ``MAX_ROUNDS`` even if there is time left.

    Returns:
        One measurement for each subject, in their order.

    Raises:
        ValueError: there is no subject, or two have one name.
    """
    names = [subject.name for subject in subjects]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"subjects need different names, and there must be one at least; got {names}")
    start = timer.now()
    samples: list[list[float]] = [[] for _ in subjects]
    with _garbage_collection_off():
        repeats = [_warm_up(subject, timer, budget_s * WARM_UP_SHARE / len(subjects)) for subject in subjects]
        rounds_start = timer.now()
        for index in range(MAX_ROUNDS):
            elapsed = timer.now() - rounds_start
            is_time_up = timer.now() - start + (elapsed / index if index else 0.0) > budget_s
            if index >= MIN_ROUNDS and is_time_up:
                break
            for position in round_order(index, len(subjects)):
                samples[position].append(timer.time(subjects[position].run, repeats[position]))
            gc.collect(0)  # between the samples, for what subjects leave in cycles
    return [Measurement(*parts) for parts in zip(subjects, samples, repeats, strict=True)]


def round_order(index: int, count: int) -> list[int]:
    """The order of the subjects in a round: every other round is the one before it reversed, and every pair is rotated.

    Two subjects run as AB BA BA AB …, three as ABC CBA BCA ACB CAB BAC …: each is as often before as after any other.

    Args:
        index: number of the round, from 0.
        count: number of subjects.
    """
    shift = index // 2 % count
    order = [(position + shift) % count for position in range(count)]
    return order[::-1] if index % 2 else order


def _warm_up(subject: Subject, timer: Timer, budget_s: float) -> int:
    """Runs a subject for a while; returns how many runs make a sample that is long enough to be timed."""
    start = timer.now()
    durations: list[float] = []
    while len(durations) < MIN_WARM_UP_RUNS or timer.now() - start < budget_s:
        durations.append(timer.time(subject.run, 1))
    if timer.isolates_runs:
        return 1
    return max(1, math.ceil(MIN_SAMPLE_S / max(min(durations), 1e-9)))


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Keeps Python's collector from running within a sample, as ``timeit`` does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
