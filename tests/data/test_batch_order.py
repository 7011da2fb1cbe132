"""The order of rows in batches: every row once in an epoch, by seed and step."""

import pytest
import torch

from didi.data.text import BatchOrder
from didi.errors import UsageError


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 3), (10, 10), (3, 10), (1, 4), (7, 1)])
def test_every_epoch_uses_every_row_once(num_rows, batch_size):
    order = BatchOrder(num_rows, batch_size, seed=0)
    num_epochs = 3 * batch_size
    batches = [order.rows(step) for step in range(num_epochs * num_rows // batch_size)]
    assert {batch.shape for batch in batches} == {(batch_size,)}
    epochs = torch.cat(batches).reshape(num_epochs, num_rows)
    assert torch.equal(epochs.sort().values, torch.arange(num_rows).expand(num_epochs, -1))


def test_a_step_does_not_depend_on_earlier_calls():
    steps = list(range(20))
    order = BatchOrder(10, 3, seed=5)
    forward = {step: order.rows(step).tolist() for step in steps}
    assert {step: order.rows(step).tolist() for step in reversed(steps)} == {step: forward[step] for step in steps}
    assert BatchOrder(10, 3, seed=5).rows(17).tolist() == forward[17]


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(BatchOrder(50, 50, seed).rows(epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_an_impossible_order_is_refused(arguments):
    with pytest.raises(UsageError, match="a batch order needs"):
        BatchOrder(*arguments)
