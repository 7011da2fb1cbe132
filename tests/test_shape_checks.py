"""Run-time checks of shapes and types: in the first calls of a function in each test, then in one call of 20."""

import pytest
import torch

from didi.diffusion.categorical import sample_from_weights
from didi.diffusion.rowwise import rows_at_a_time

from . import shape_checks


def is_checked():
    """Whether the next call of ``rows_at_a_time`` is checked."""
    try:
        rows_at_a_time("not a number", torch.device("cpu"))
    except Exception as error:
        return "Type-check error" in str(error)
    raise AssertionError("a string was accepted as a number of columns")


def test_the_first_calls_of_each_test_are_checked_then_one_of_20():
    assert all(is_checked() for _ in range(shape_checks.ALWAYS))
    checked = [is_checked() for _ in range(shape_checks.ALWAYS, 2 * shape_checks.EVERY)]
    numbers = range(shape_checks.ALWAYS + 1, 2 * shape_checks.EVERY + 1)
    assert checked == [number % shape_checks.EVERY == 0 for number in numbers]
    shape_checks.next_test()
    assert is_checked()


def test_a_wrong_shape_is_refused_and_a_right_one_is_not():
    weights = torch.ones(2, 3).double()
    assert sample_from_weights(weights, torch.zeros(2).double()).shape == (2,)
    with pytest.raises(Exception, match="Type-check error"):
        sample_from_weights(weights, torch.zeros(3).double())


def test_values_that_no_annotation_allows_pass_where_checks_are_disabled(unchecked):
    assert not is_checked()
