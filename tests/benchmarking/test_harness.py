from __future__ import annotations

import gc
import itertools

import pytest
import torch

from vitfast.benchmarking import harness
from vitfast.benchmarking.harness import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    MIN_SAMPLE_S,
    Case,
    Spread,
    Timer,
    Timing,
    cache_flush,
    cache_sizes,
    measure,
    round_order,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_round_runs_every_case_once(count):
    for index in range(4 * count):
        assert sorted(round_order(index, count)) == list(range(count))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_case_is_as_often_before_as_after_any_other(count):
    orders = [round_order(index, count) for index in range(2 * count)]
    for one, other in itertools.permutations(range(count), 2):
        before = sum(order.index(one) < order.index(other) for order in orders)
        assert before == count


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_case_is_equally_often_at_each_place(count):
    orders = [round_order(index, count) for index in range(2 * count)]
    for place in range(count):
        assert sorted(order[place] for order in orders) == sorted(2 * list(range(count)))


def test_rounds_are_interleaved_in_the_announced_order(clock):
    cases = [clock.case(name, 1.0) for name in "ABC"]
    results = measure(cases, Timer(CPU, clock=clock), budget_s=6.0)
    rounds = clock.log[-3 * len(results[0].samples_s) :]
    assert ["".join(rounds[3 * index : 3 * index + 3]) for index in range(5)] == ["ABC", "CBA", "BCA", "ACB", "CAB"]


def test_time_and_speedup_are_those_of_the_cases(clock):
    fast, slow = measure([clock.case("fast", 0.25), clock.case("slow", 0.5)], Timer(CPU, clock=clock), 30.0)
    assert set(fast.samples_s) == {0.25}
    assert set(slow.samples_s) == {0.5}
    assert fast.speedup_over(slow) == Spread(2.0, 2.0, 2.0)
    assert slow.speedup_over(fast) == Spread(0.5, 0.5, 0.5)


def test_slow_rounds_spread_times_but_not_ratios(clock):
    slowness = [1.0, 1.0, 1.0, 4.0, 2.0, 8.0, 3.0]  # two runs of warm-up, then five rounds
    one = clock.case("one", slowness)
    two = clock.case("two", [2 * seconds for seconds in slowness])
    first, second = measure([one, two], Timer(CPU, clock=clock), budget_s=1.0)
    assert first.samples_s == slowness[2:]
    assert Spread.of(first.samples_s) == Spread(median=3.0, lower=2.0, upper=4.0)
    assert first.speedup_over(second) == Spread(2.0, 2.0, 2.0)


def test_rounds_fill_the_budget_and_do_not_exceed_it(clock):
    results = measure([clock.case("one", 0.1), clock.case("two", 0.3)], Timer(CPU, clock=clock), budget_s=20.0)
    assert 19.5 < clock.seconds <= 20.0 + 1e-6
    assert len(results[0].samples_s) == len(results[1].samples_s) > 40


def test_a_slow_case_still_gets_the_fewest_rounds(clock):
    (result,) = measure([clock.case("slow", 100.0)], Timer(CPU, clock=clock), budget_s=1.0)
    assert len(result.samples_s) == MIN_ROUNDS


def test_a_fast_case_stops_at_the_most_rounds(clock):
    (result,) = measure([clock.case("fast", 0.01)], Timer(CPU, clock=clock), budget_s=10.0)  # of a thousand runs
    assert len(result.samples_s) == MAX_ROUNDS


def test_short_runs_are_repeated_until_a_sample_is_long_enough(clock):
    (result,) = measure([clock.case("short", 3e-6)], Timer(CPU, clock=clock), budget_s=0.2)
    assert result.repeats == 334  # 333 would last 0.999 ms
    assert result.repeats * 3e-6 >= MIN_SAMPLE_S
    assert result.samples_s[0] == pytest.approx(3e-6)


def test_with_a_flush_before_each_run_nothing_is_repeated(clock):
    timer = Timer(CPU, cold_cache=True, clock=clock)
    (result,) = measure([clock.case("short", 3e-6)], timer, budget_s=1e-4)
    assert result.repeats == 1


def test_the_first_slow_runs_are_no_samples(clock):
    (result,) = measure([clock.case("compiles", [60.0, 5.0, 1.0])], Timer(CPU, clock=clock), budget_s=80.0)
    assert set(result.samples_s) == {1.0}


@pytest.mark.parametrize("names", [[], ["same", "same"]])
def test_cases_without_names_of_their_own_are_refused(clock, names):
    with pytest.raises(ValueError, match="different names"):
        measure([clock.case(name, 1.0) for name in names], Timer(CPU, clock=clock), 1.0)


def test_garbage_collection_is_off_while_measuring_and_back_on_afterwards(clock):
    states = []

    def fail_late():
        states.append(gc.isenabled())
        clock.seconds += 1.0
        if len(states) == 5:
            raise RuntimeError("broken case")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken case"):
        measure([Case("broken", fail_late)], Timer(CPU, clock=clock), 1.0)
    assert states == [False] * 5
    assert gc.isenabled()


def test_quartiles_are_interpolated_within_the_samples():
    assert Spread.of([4.0, 1.0, 2.0, 3.0]) == Spread(median=2.5, lower=1.75, upper=3.25)
    assert Spread.of([1.0, 100.0]) == Spread(median=50.5, lower=25.75, upper=75.25)


def test_one_sample_has_no_spread():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_an_outlier_moves_neither_median_nor_quartiles():
    assert Spread.of([1.0, 1.0, 1.0, 1.0, 1000.0]) == Spread(1.0, 1.0, 1.0)


def speedup(numerators, denominators):
    one, other = (Timing(Case("a case", print), samples, 1) for samples in (denominators, numerators))
    return one.speedup_over(other)


def test_ratios_are_formed_pair_by_pair():
    # the medians' ratio would be 2 / 2 = 1
    assert speedup([3.0, 2.0, 1.0], [1.0, 2.0, 4.0]).median == 1.0
    assert speedup([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == Spread(2.0, 2.0, 2.0)
    assert speedup([1.0, 6.0, 2.0], [1.0, 2.0, 4.0]).median == 1.0


def test_time_is_that_of_one_run(clock):
    case = clock.case("one", [1.0, 2.0, 6.0])
    assert Timer(CPU, clock=clock).time(case.run, 3) == 3.0
    assert clock.log == ["one"] * 3


def test_the_flush_comes_first_and_is_not_timed(clock, monkeypatch):
    monkeypatch.setattr(harness, "cache_flush", lambda device: clock.case("flush", 50.0).run)
    case = clock.case("one", 2.0)
    assert Timer(CPU, cold_cache=True, clock=clock).time(case.run, 1) == 2.0
    assert clock.log == ["flush", "one"]


def test_the_wall_clock_runs_forward():
    timer = Timer(CPU)
    before = timer.now()
    assert timer.time(lambda: sum(range(1000)), 2) > 0.0
    assert timer.now() > before


@pytest.mark.cuda
@pytest.mark.parametrize("cold_cache", [False, True])
def test_cuda_events_cover_the_work_on_the_device(cold_cache):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    device = torch.device("cuda")
    timer = Timer(device, cold_cache=cold_cache)
    a = torch.randn(4096, 4096, device=device)
    assert timer.time(lambda: [a @ a for _ in range(8)], 1) > timer.time(lambda: a @ a, 1) > 0.0


def write_cache(folder, index, kind, level, size):
    entry = folder / f"index{index}"
    entry.mkdir()
    for name, value in (("type", kind), ("level", level), ("size", size)):
        (entry / name).write_text(f"{value}\n")


def test_data_caches_are_read_with_their_units(tmp_path):
    write_cache(tmp_path, 0, "Data", 1, "48K")
    write_cache(tmp_path, 1, "Instruction", 1, "32K")
    write_cache(tmp_path, 2, "Unified", 2, "2048K")
    write_cache(tmp_path, 3, "Unified", 3, "36M")
    assert cache_sizes(tmp_path) == {"L1": 48 * 2**10, "L2": 2 * 2**20, "L3": 36 * 2**20}


def test_unknown_cache_sizes_have_a_default(tmp_path):
    (tmp_path / "index0").mkdir()
    assert cache_sizes(tmp_path) == {}


def test_the_flushed_buffer_is_twice_the_last_level_cache(monkeypatch):
    for sizes, size_bytes in (({"L1": 2**10, "L2": 2**20}, 2 * 2**20), ({}, 2 * 64 * 2**20)):
        monkeypatch.setattr(harness, "cache_sizes", lambda sizes=sizes: sizes)
        buffer = cache_flush(CPU)()
        assert buffer.nbytes == size_bytes
        assert buffer.bool().all()
