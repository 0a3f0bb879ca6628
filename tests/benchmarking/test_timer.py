from __future__ import annotations

import pytest
import torch

from vitfast.benchmarking.timer import CpuTimer, CudaTimer, create_timer


def test_time_is_that_of_one_run(clock):
    subject = clock.subject("one", [1.0, 2.0, 6.0])
    assert CpuTimer(clock=clock).time(subject.run, 3) == 3.0
    assert clock.log == ["one"] * 3


def test_the_flush_comes_first_and_is_not_timed(clock):
    flush = clock.subject("flush", 50.0).run
    subject = clock.subject("one", 2.0)
    timer = CpuTimer(flush=flush, clock=clock)
    assert timer.isolates_runs
    assert timer.time(subject.run, 1) == 2.0
    assert clock.log == ["flush", "one"]


def test_the_wall_clock_runs_forward():
    timer = create_timer(torch.device("cpu"))
    assert isinstance(timer, CpuTimer)
    assert not timer.isolates_runs
    before = timer.now()
    assert timer.time(lambda: sum(range(1000)), 2) > 0.0
    assert timer.now() > before


def test_cold_caches_isolate_runs():
    assert create_timer(torch.device("cpu"), cold_cache=True).isolates_runs


@pytest.mark.cuda
@pytest.mark.parametrize("cold_cache", [False, True])
def test_cuda_events_cover_the_work_on_the_device(cold_cache):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    device = torch.device("cuda")
    timer = create_timer(device, cold_cache=cold_cache)
    assert isinstance(timer, CudaTimer)
    a = torch.randn(4096, 4096, device=device)
    assert timer.time(lambda: [a @ a for _ in range(8)], 1) > timer.time(lambda: a @ a, 1) > 0.0
