import math

import pytest

from didi.evaluation.over_seeds import estimate, geometric_estimate, t_quantile


def test_interval_of_five_seeds_is_students():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half_width = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.mean, found.low, found.high) == (3, pytest.approx(3 - half_width), pytest.approx(3 + half_width))
    assert str(found) == "3.00 [1.04, 4.96]"
    assert str(estimate([250.0, 252.0])) == "251.0 [238.3, 263.7]"
    assert str(estimate([2500.0, 2520.0])) == "2510 [2383, 2637]"


def test_a_single_seed_has_no_interval_and_none_no_estimate():
    assert str(estimate([4.0])) == str(geometric_estimate([4.0])) == "4.00"
    with pytest.raises(ValueError, match="a seed or more"):
        estimate([])


@pytest.mark.parametrize(
    ("freedom", "quantile", "error"),
    [(10, 2.2281, 0.0015), (15, 2.1314, 5e-4), (30, 2.0423, 1e-4), (100, 1.9840, 3e-5), (100_000, 1.95999, 1e-5)],
)
def test_quantiles_beyond_the_table_are_close(freedom, quantile, error):
    assert t_quantile(freedom) == pytest.approx(quantile, rel=error)


def test_a_positive_figure_has_a_positive_interval():
    found = geometric_estimate([1.0, 1.0, 100.0])
    assert found.mean == pytest.approx(100 ** (1 / 3))
    assert 0 < found.low < found.mean
    assert found.low * found.high == pytest.approx(found.mean**2)
