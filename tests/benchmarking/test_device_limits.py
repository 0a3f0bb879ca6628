from __future__ import annotations

import pytest
import torch

from vitfast.benchmarking.comparison import Comparison, Contest, run_comparison
from vitfast.benchmarking.device_limits import device_limits, with_limits
from vitfast.benchmarking.report import outcome_text
from vitfast.benchmarking.timer import CpuTimer

CPU = torch.device("cpu")


def compare(clock, **contest):
    subjects = [
        clock.subject("vitfast", 2.0),
        clock.subject("device copy", 0.5, is_limit=True, gigabyte=4.0),
        clock.subject("device matrix product", 0.25, is_limit=True, gflop=10.0),
    ]
    comparison = Comparison("inference", "a title", {}, "fp32", 1.0, lambda: Contest(subjects, **contest))
    return run_comparison(comparison, CpuTimer(clock=clock), budget_s=40.0)


def test_shares_are_rates_over_those_of_the_limits(clock):
    outcome = compare(clock, gflop=20.0, gigabyte=4.0, images=8)
    own, copy, product = outcome.standings
    assert (own.gflop_per_s, own.gigabyte_per_s) == (10.0, 2.0)
    assert (own.peak_share, own.copy_share) == (0.25, 0.25)
    assert (copy.gigabyte_per_s, copy.copy_share, copy.gflop_per_s, copy.peak_share) == (8.0, 1.0, None, None)
    assert (product.gflop_per_s, product.peak_share, product.gigabyte_per_s) == (40.0, 1.0, None)
    # if the model were nothing but its bytes, or its multiply-adds
    assert (own.images_per_s, copy.images_per_s, product.images_per_s) == (4.0, 16.0, 16.0)
    text = outcome_text(outcome)
    assert "of peak" in text
    assert "of copy" in text


def test_work_that_is_not_known_has_no_share(clock):
    own, copy, product = compare(clock, images=8).standings
    assert (own.peak_share, own.copy_share) == (None, None)
    assert (copy.images_per_s, product.images_per_s) == (None, None)
    assert copy.copy_share == product.peak_share == 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_limits_do_what_they_count(precision):
    copy, product = device_limits(CPU, precision)
    assert copy.run().nbytes * 2e-9 == copy.gigabyte
    result = product.run()
    rows, columns = result.shape
    assert product.gflop == pytest.approx(2e-9 * rows * rows * columns)
    assert result.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert result.abs().sum() > 0


def test_they_join_any_comparison(clock):
    contest = Contest([clock.subject("vitfast", 1.0)], gflop=1.0)
    comparison = with_limits(Comparison("inference", "a title", {}, "fp32", 1.0, lambda: contest), CPU)
    assert [(one.name, one.is_limit) for one in comparison.build().subjects] == [
        ("vitfast", False),
        ("device copy", True),
        ("device matrix product", True),
    ]
