from __future__ import annotations

import pytest
import torch

from vitfast.benchmarking.comparison import Comparison, Contest, disagreements, run_comparison
from vitfast.benchmarking.spread import Spread
from vitfast.benchmarking.timer import CpuTimer


def compare(clock, subjects, precision="fp32", **contest):
    comparison = Comparison(
        mode="operators",
        title="a title",
        labels={"batch": 2},
        precision=precision,
        weight=1.0,
        build=lambda: Contest(subjects, **contest),
    )
    return run_comparison(comparison, CpuTimer(clock=clock), budget_s=40.0)


def test_rates_are_work_over_median_time(clock):
    outcome = compare(clock, [clock.subject("vitfast", 0.5)], images=8, gflop=3.0, gigabyte=0.25)
    (standing,) = outcome.standings
    assert standing.time_ms.median == 500.0
    assert (standing.images_per_s, standing.gflop_per_s, standing.gigabyte_per_s) == (16.0, 6.0, 0.5)
    assert (outcome.images, outcome.gflop, outcome.gigabyte) == (8, 3.0, 0.25)


def test_work_that_is_not_known_gives_no_rate(clock):
    (standing,) = compare(clock, [clock.subject("vitfast", 0.5)]).standings
    assert (standing.images_per_s, standing.gflop_per_s, standing.gigabyte_per_s) == (None, None, None)


def test_a_single_subject_has_no_rival(clock):
    (standing,) = compare(clock, [clock.subject("vitfast", 0.5)]).standings
    assert (standing.against, standing.speedup, standing.error) == (None, None, None)


def test_each_subject_is_held_against_the_fastest_other_that_is_no_limit(clock):
    subjects = [
        clock.subject("vitfast", 1.0),
        clock.subject("timm", 2.0),
        clock.subject("torchvision", 4.0),
        clock.subject("copy", 0.25, is_limit=True),
    ]
    standings = {one.subject: one for one in compare(clock, subjects).standings}
    assert {name: one.against for name, one in standings.items()} == {
        "vitfast": "timm",
        "timm": "vitfast",
        "torchvision": "vitfast",
        "copy": "vitfast",
    }
    assert standings["vitfast"].speedup == Spread(2.0, 2.0, 2.0)
    assert standings["torchvision"].speedup == Spread(0.25, 0.25, 0.25)
    assert standings["copy"].is_limit
    assert not standings["vitfast"].is_limit


def test_the_arithmetic_peak_is_that_of_its_fastest_sample(clock):
    """Threads of a rival go on spinning, or the machine is shared: a limit that counted as slow could be exceeded."""
    peak = clock.subject("peak", [9.0, 9.0, 2.0, 8.0, 8.0, 1.0, 8.0], is_limit=True, gflop=4.0)
    subjects = [clock.subject("vitfast", 0.5, gflop=1.5), peak]
    vitfast, limit = compare(clock, subjects, images=3, gflop=2.0).standings
    assert (vitfast.gflop_per_s, limit.gflop_per_s) == (3.0, 4.0)
    assert (vitfast.peak_share, limit.peak_share) == (0.75, 1.0)
    assert (vitfast.images_per_s, limit.images_per_s) == (6.0, 6.0)
    assert limit.time_ms.median == 8000.0


def test_results_are_checked_before_anything_is_measured(clock):
    order = []
    subject = clock.subject("vitfast", 1.0, output=lambda: order.append(len(clock.log)) or torch.ones(2))
    outcome = compare(clock, [subject], reference=lambda: torch.tensor([1.0, 1.0]), reference_name="the truth")
    assert order == [0]
    assert outcome.standings[0].error == 0.0
    assert outcome.reference_name == "the truth"


@pytest.mark.parametrize(("precision", "agrees"), [("fp32", False), ("bf16", True)])
def test_a_subject_that_differs_by_more_than_rounding_is_named(clock, precision, agrees):
    subjects = [
        clock.subject("vitfast", 1.0, output=lambda: torch.tensor([1.0, 1.01])),
        clock.subject("torch", 1.0, output=lambda: torch.ones(2)),
        clock.subject("copy", 1.0, is_limit=True),
    ]
    outcome = compare(clock, subjects, precision, reference=lambda: torch.ones(2), reference_name="torch in fp64")
    lines = disagreements(outcome)
    assert len(lines) == (0 if agrees else 1)
    assert all("a title: vitfast differs from torch in fp64 by 7.1e-03" in line for line in lines)


def test_nan_is_a_disagreement(clock):
    subject = clock.subject("vitfast", 1.0, output=lambda: torch.tensor([float("nan")]))
    outcome = compare(clock, [subject], reference=lambda: torch.ones(1))
    assert len(disagreements(outcome)) == 1
