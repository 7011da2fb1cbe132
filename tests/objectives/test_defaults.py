"""Constants and defaults of the objective that other tests import from the code."""

import pytest
import torch

from didi.errors import UsageError
from didi.objectives.didi import STD_EPSILON, advantages


def test_the_epsilon_has_the_value_of_eq_7():
    assert STD_EPSILON == 1e-6


@pytest.mark.parametrize("grouping", ["rows", "shared-time"])
def test_the_default_group_size_is_refused(grouping):
    with pytest.raises(UsageError, match="got 1 of 4"):
        advantages(torch.zeros(4, 1, 1), grouping=grouping)
