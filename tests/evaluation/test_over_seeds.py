import math

import pytest

from didi.evaluation.over_seeds import estimate, ratio_estimate


def test_interval_of_five_seeds_is_students():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.num_seeds) == (3, 5)
    assert found.half_width == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert str(found) == "3.00 ± 1.96"
    assert str(estimate([250.0, 252.0])) == "251.0 ± 12.7"


def test_a_single_seed_has_no_interval_and_none_no_estimate():
    assert str(estimate([4.0])) == "4.00"
    with pytest.raises(ValueError, match="a seed or more"):
        estimate([])


def test_many_seeds_come_near_the_normal_law():
    assert estimate([0.0, 1.0] * 10).half_width == pytest.approx(1.96 * math.sqrt(5 / 19) / math.sqrt(20))


def test_ratios_are_taken_seed_by_seed():
    found = ratio_estimate([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(2)
    assert found.half_width == pytest.approx(0, abs=1e-12)
