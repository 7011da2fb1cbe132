"""The epsilon and the default group size of advantages, which other tests import and therefore do not check."""

import pytest
import torch

from didi.errors import UsageError
from didi.objectives.didi import STD_EPSILON, advantages


def test_the_epsilon_has_the_value_of_eq_7():
    assert STD_EPSILON == 1e-6


@pytest.mark.parametrize("grouping", ["rows", "shared-time"])
def test_groups_of_the_default_size_1_are_refused(grouping):
    with pytest.raises(UsageError, match="got 1 of 4"):
        advantages(torch.zeros(4, 1, 1), grouping=grouping)
