"""Numbers and defaults of the objective that other tests take from the code itself."""

import pytest
import torch

from didi.errors import UsageError
from didi.objectives.didi import STD_EPSILON, advantages


def test_the_epsilon_is_that_of_eq_7():
    assert STD_EPSILON == 1e-6


@pytest.mark.parametrize("grouping", ["rows", "shared-time"])
def test_the_size_of_a_group_has_to_be_given(grouping):
    with pytest.raises(UsageError, match="got 1 of 4"):
        advantages(torch.zeros(4, 1, 1), grouping=grouping)
