"""Means over training seeds with Student's t intervals."""

import math
import statistics

import pytest

from didi.evaluation.over_seeds import estimate, geometric_estimate


def test_the_interval_of_five_seeds_is_that_of_students_t():
    result = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half_width = 2.776445105 * math.sqrt(2.5) / math.sqrt(5)
    assert (result.mean, result.low, result.high) == (3, pytest.approx(3 - half_width), pytest.approx(3 + half_width))
    assert str(result) == "3.00 [1.04, 4.96]"
    assert str(estimate([250.0, 252.0])) == "251.0 [238.3, 263.7]"
    assert str(estimate([2500.0, 2520.0])) == "2510 [2383, 2637]"


def test_a_single_seed_has_no_interval_and_none_no_estimate():
    assert str(estimate([4.0])) == str(geometric_estimate([4.0])) == "4.00"
    with pytest.raises(ValueError, match="one value or more"):
        estimate([])


@pytest.mark.parametrize(("num_seeds", "quantile"), [(2, 12.70620), (11, 2.228139), (31, 2.042272), (101, 1.983972)])
def test_the_width_of_the_interval_is_that_of_students_t_for_any_number_of_seeds(num_seeds, quantile):
    values = [float(seed) for seed in range(num_seeds)]
    result = estimate(values)
    standard_error = statistics.stdev(values) / math.sqrt(num_seeds)
    assert result.high - result.mean == pytest.approx(quantile * standard_error, rel=1e-6)
    assert result.mean - result.low == pytest.approx(quantile * standard_error, rel=1e-6)


def test_the_interval_of_a_geometric_mean_is_positive():
    result = geometric_estimate([1.0, 1.0, 100.0])
    assert result.mean == pytest.approx(100 ** (1 / 3))
    assert 0 < result.low < result.mean
    assert result.low * result.high == pytest.approx(result.mean**2)
