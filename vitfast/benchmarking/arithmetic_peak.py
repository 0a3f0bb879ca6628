"""The arithmetic limit of this machine: a loop of nothing but multiply-adds on registers."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from vitfast.benchmarking.subject import Subject
from vitfast.ops.packed import has_packed

# The shortest run of the loop. A millisecond is gone before every thread is awake, and a rival's threads may go on
# spinning for longer than that: such samples are mostly of what is not arithmetic.
MIN_RUN_S = 0.05
_FIRST_ITERATIONS = 10_000
# runs of one length; the first may pay for threads and clock frequency, and others may be disturbed
_TRIALS = 3
_MAX_GROWTH = 16


def arithmetic_peak(precision: str) -> Subject | None:
    """Builds the subject that computes as fast as the processor can, on all of torch's threads.

    Args:
        precision: ``"fp32"``, ``"bf16"``, ``"int8"`` or ``"fp16_32"``, whose products are those of fp32.

    Returns:
        The subject, a limit; None without vitfast's kernels.
    """
    if not has_packed("fma_peak"):
        return None
    arithmetic = "fp32" if precision == "fp16_32" else precision
    operator = torch.ops.vitfast.fma_peak.default
    iterations = iterations_of_a_run(lambda count: operator(arithmetic, count))
    operations = operator(arithmetic, iterations)
    return Subject(
        "arithmetic peak", run=lambda: operator(arithmetic, iterations), is_limit=True, gflop=operations * 1e-9
    )


def iterations_of_a_run(loop: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> int:
    """Returns how many iterations take ``MIN_RUN_S`` at least, however little the machine is disturbed.

    Disturbances lengthen a run and never shorten it, so a number of iterations is enough only when the fastest of
    several runs, the first of which warms up, takes that long.

    Args:
        loop: runs as many iterations as it is told.
        clock: returns seconds.
    """
    iterations = _FIRST_ITERATIONS
    while True:
        loop(iterations)
        fastest = min(_seconds(loop, iterations, clock) for _ in range(_TRIALS))
        if fastest >= MIN_RUN_S:
            return iterations
        growth = 1.2 * MIN_RUN_S / max(fastest, 1e-9)
        iterations = round(iterations * min(growth, _MAX_GROWTH)) + 1


def _seconds(loop: Callable[[int], object], iterations: int, clock: Callable[[], float]) -> float:
    start = clock()
    loop(iterations)
    return clock() - start
