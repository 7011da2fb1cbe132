import math

import pytest

from didi.evaluation.over_seeds import estimate, geometric_estimate, t_quantile


def test_interval_of_five_seeds_is_students():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half_width = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.mean, found.low, found.high) == (3, pytest.approx(3 - half_width), pytest.approx(3 + half_width))
    assert str(found) == "3.00 [1.04, 4.96]"
    assert str(estimate([250.0, 252.0])) == "251.0 [238.3, 263.7]"


def test_a_single_seed_has_no_interval_and_none_no_estimate():
    assert str(estimate([4.0])) == str(geometric_estimate([4.0])) == "4.00"
    with pytest.raises(ValueError, match="a seed or more"):
        estimate([])


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (9, 2.262), (10, 2.2281), (15, 2.1314), (30, 2.0423), (100_000, 1.95999)]
)
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, rel=0.002)


def test_a_positive_figure_has_a_positive_interval():
    found = geometric_estimate([1.0, 1.0, 100.0])
    assert found.mean == pytest.approx(100 ** (1 / 3))
    assert 0 < found.low < found.mean
    assert found.low * found.high == pytest.approx(found.mean**2)
