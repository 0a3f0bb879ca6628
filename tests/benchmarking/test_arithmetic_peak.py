from __future__ import annotations

import pytest
import torch

from vitfast.benchmarking.arithmetic_peak import MIN_RUN_S, arithmetic_peak, iterations_of_a_run
from vitfast.ops.packed import has_packed

RATE = 2e6  # iterations a second, undisturbed


class DisturbedLoop:
    """A loop on a machine that others use: every run takes longer than it should, by another factor."""

    def __init__(self, delays: list[float], factors: list[float]) -> None:
        self.delays, self.factors = delays, factors
        self.seconds, self.calls = 0.0, 0

    def __call__(self, iterations: int) -> None:
        delay = self.delays[min(self.calls, len(self.delays) - 1)]
        self.seconds += delay + self.factors[self.calls % len(self.factors)] * iterations / RATE
        self.calls += 1

    def clock(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("delays", "factors"),
    [
        ([0.0], [1.0]),
        ([0.5, 0.5, 0.0], [1.0]),  # the threads start in the first call, and the second is interrupted
        ([0.2, 0.0], [1.0, 1.0, 30.0]),
        ([0.0], [8.0, 1.0]),
    ],
)
def test_a_run_is_long_enough_without_disturbances(delays, factors):
    loop = DisturbedLoop(delays, factors)
    seconds = iterations_of_a_run(loop, loop.clock) / RATE
    assert seconds >= MIN_RUN_S
    assert seconds < 2 * MIN_RUN_S, "the benchmark's time is not for the limit alone"


def test_the_peak_counts_what_a_run_of_it_does():
    peak = arithmetic_peak("fp16_32")
    if not has_packed("fma_peak"):
        assert peak is None
        return
    assert peak.is_limit
    assert peak.gflop * 1e9 == pytest.approx(peak.run())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 * before)
        assert peak.run() == pytest.approx(2e9 * peak.gflop)
    finally:
        torch.set_num_threads(before)


def test_other_precisions_have_peaks_of_their_own():
    if not has_packed("fma_peak"):
        pytest.skip("pure PyTorch: there is no peak")
    with pytest.raises(RuntimeError, match="precision must be fp32"):
        arithmetic_peak("fp8")
