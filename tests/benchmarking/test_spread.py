from __future__ import annotations

import pytest

from vitfast.benchmarking.spread import Spread


def test_quartiles_are_interpolated_within_the_samples():
    assert Spread.of([4.0, 1.0, 2.0, 3.0]) == Spread(median=2.5, lower=1.75, upper=3.25)
    assert Spread.of([1.0, 100.0]) == Spread(median=50.5, lower=25.75, upper=75.25)


def test_one_sample_has_no_spread():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_an_outlier_moves_neither_median_nor_quartiles():
    assert Spread.of([1.0, 1.0, 1.0, 1.0, 1000.0]) == Spread(1.0, 1.0, 1.0)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of([])


def test_ratios_are_formed_pair_by_pair():
    # the medians' ratio would be 2 / 2 = 1
    assert Spread.of_ratios([3.0, 2.0, 1.0], [1.0, 2.0, 4.0]).median == 1.0
    assert Spread.of_ratios([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of_ratios([1.0, 6.0, 2.0], [1.0, 2.0, 4.0]).median == 1.0


def test_ratios_of_unequal_numbers_of_samples_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Spread.of_ratios([1.0, 2.0], [1.0])


def test_scaling_changes_the_unit():
    assert Spread(2.0, 1.0, 3.0).scaled(1000.0) == Spread(2000.0, 1000.0, 3000.0)
