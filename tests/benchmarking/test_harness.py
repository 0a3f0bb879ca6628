from __future__ import annotations

import gc
import itertools

import pytest

from vitfast.benchmarking.harness import MAX_ROUNDS, MIN_ROUNDS, MIN_SAMPLE_S, measure, round_order
from vitfast.benchmarking.spread import Spread
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.timer import CpuTimer


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_round_runs_every_subject_once(count):
    for index in range(4 * count):
        assert sorted(round_order(index, count)) == list(range(count))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_subject_is_as_often_before_as_after_any_other(count):
    orders = [round_order(index, count) for index in range(2 * count)]
    for one, other in itertools.permutations(range(count), 2):
        before = sum(order.index(one) < order.index(other) for order in orders)
        assert before == count


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_subject_is_equally_often_at_each_place(count):
    orders = [round_order(index, count) for index in range(2 * count)]
    for place in range(count):
        assert sorted(order[place] for order in orders) == sorted(2 * list(range(count)))


def test_rounds_are_interleaved_in_the_announced_order(clock):
    subjects = [clock.subject(name, 1.0) for name in "ABC"]
    results = measure(subjects, CpuTimer(clock=clock), budget_s=6.0)
    rounds = clock.log[-3 * len(results[0].samples_s) :]
    assert ["".join(rounds[3 * index : 3 * index + 3]) for index in range(5)] == ["ABC", "CBA", "BCA", "ACB", "CAB"]


def test_time_and_speedup_are_those_of_the_subjects(clock):
    fast, slow = measure([clock.subject("fast", 0.25), clock.subject("slow", 0.5)], CpuTimer(clock=clock), 30.0)
    assert fast.time_s == Spread(0.25, 0.25, 0.25)
    assert slow.time_s == Spread(0.5, 0.5, 0.5)
    assert fast.speedup_over(slow) == Spread(2.0, 2.0, 2.0)
    assert slow.speedup_over(fast) == Spread(0.5, 0.5, 0.5)


def test_what_slows_a_whole_round_spreads_times_but_not_ratios(clock):
    slowness = [1.0, 1.0, 1.0, 4.0, 2.0, 8.0, 3.0]  # two runs of warm-up, then five rounds
    one = clock.subject("one", slowness)
    two = clock.subject("two", [2 * seconds for seconds in slowness])
    first, second = measure([one, two], CpuTimer(clock=clock), budget_s=1.0)
    assert first.samples_s == slowness[2:]
    assert first.time_s == Spread(median=3.0, lower=2.0, upper=4.0)
    assert first.speedup_over(second) == Spread(2.0, 2.0, 2.0)


def test_rounds_fill_the_budget_and_do_not_exceed_it(clock):
    results = measure([clock.subject("one", 0.1), clock.subject("two", 0.3)], CpuTimer(clock=clock), budget_s=20.0)
    assert 19.5 < clock.seconds <= 20.0 + 1e-6
    assert len(results[0].samples_s) == len(results[1].samples_s) > 40


def test_a_slow_subject_still_gets_the_fewest_rounds(clock):
    (result,) = measure([clock.subject("slow", 100.0)], CpuTimer(clock=clock), budget_s=1.0)
    assert len(result.samples_s) == MIN_ROUNDS


def test_a_fast_subject_stops_at_the_most_rounds(clock):
    (result,) = measure([clock.subject("fast", 0.01)], CpuTimer(clock=clock), budget_s=1e6 * 0.01)
    assert len(result.samples_s) == MAX_ROUNDS


def test_short_runs_are_repeated_until_a_sample_is_long_enough(clock):
    (result,) = measure([clock.subject("short", 3e-6)], CpuTimer(clock=clock), budget_s=0.2)
    assert result.repeats == 334  # 333 would last 0.999 ms
    assert result.repeats * 3e-6 >= MIN_SAMPLE_S
    assert result.time_s.median == pytest.approx(3e-6)


def test_with_a_flush_before_each_run_nothing_is_repeated(clock):
    (result,) = measure([clock.subject("short", 3e-6)], CpuTimer(flush=lambda: None, clock=clock), budget_s=0.01)
    assert result.repeats == 1


def test_the_first_slow_runs_are_no_samples(clock):
    (result,) = measure([clock.subject("compiles", [60.0, 5.0, 1.0])], CpuTimer(clock=clock), budget_s=80.0)
    assert set(result.samples_s) == {1.0}


@pytest.mark.parametrize("names", [[], ["same", "same"]])
def test_subjects_without_names_of_their_own_are_refused(clock, names):
    with pytest.raises(ValueError, match="different names"):
        measure([clock.subject(name, 1.0) for name in names], CpuTimer(clock=clock), 1.0)


def test_garbage_collection_is_off_while_measuring_and_back_on_afterwards(clock):
    states = []

    def fail_late():
        states.append(gc.isenabled())
        clock.seconds += 1.0
        if len(states) == 5:
            raise RuntimeError("broken subject")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken subject"):
        measure([Subject("broken", fail_late)], CpuTimer(clock=clock), 1.0)
    assert states == [False] * 5
    assert gc.isenabled()
