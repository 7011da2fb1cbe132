"""The enumerated states, and a first move, which only needs the fully masked state."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.errors import UsageError
from didi.evaluation.exact import states as states_module
from didi.evaluation.exact.sampler import network_predictions, successor_probs
from didi.evaluation.exact.states import States

SMALL = States(num_symbols=2, length=3)


def test_a_first_move_starts_from_the_fully_masked_state_alone(make_dit):
    network, t = make_dit(vocab_size=3, length=3, is_time_conditioned=True), torch.tensor(1.0).double()
    whole, first = (network_predictions(network, Absorbing(2), SMALL, t, is_first=value) for value in (False, True))
    torch.testing.assert_close(first[-1], whole[-1], atol=1e-6, rtol=1e-5)  # rounding depends on the batch size
    assert not first[:-1].any()
    rows = SMALL.by_pattern(whole)
    assert [number for number, _ in successor_probs(SMALL, 0.5, rows)] == list(range(8))
    assert [number for number, _ in successor_probs(SMALL, 0.5, rows, is_first=True)] == [7]


def test_the_number_of_states_includes_those_with_masks_and_is_bounded(monkeypatch):
    assert len(SMALL) == len(SMALL.tokens) == 27
    monkeypatch.setattr(states_module, "MAX_STATES", 27)
    assert States(2, 3) == SMALL
    monkeypatch.setattr(states_module, "MAX_STATES", 26)
    with pytest.raises(UsageError, match="at most 26; got 2 symbols and length 3"):
        States(2, 3)
    for num_symbols, length in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="enumerates"):
            States(num_symbols, length)
