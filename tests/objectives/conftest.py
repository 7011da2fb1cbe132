import pytest
import torch

from didi.models.dit import DiT


class EachStateOnce(DiT):
    """A DiT that computes the features of equal rows of a batch once: thousands of samples share a few states."""

    def features(self, inputs, sigma=None, attention_mask=None, codes=None):
        assert attention_mask is None
        state = torch.zeros(len(inputs), dtype=torch.long) if sigma is None else sigma.unique(return_inverse=True)[1]
        for values, radix in ((inputs, self.vocab_size), (codes, self.config.num_codes)):
            for column in () if values is None else values.unbind(1):
                state = radix * state + column
        states, index = state.unique(return_inverse=True)
        row = index.new_empty(len(states)).scatter_(0, index, torch.arange(len(index)))  # one row of each state
        inputs, sigma, codes = (None if values is None else values[row] for values in (inputs, sigma, codes))
        return super().features(inputs, sigma, None, codes)[index]


@pytest.fixture(scope="session")
def make_dit_of_states(make_dit):
    """``make_dit`` whose network computes equal rows of a batch once."""

    def make(**options):
        network = make_dit(**options)
        network.__class__ = EachStateOnce
        return network

    return make
