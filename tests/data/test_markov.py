"""The named Markov chains and their sources."""

import pytest
import torch

from didi.data.markov import CHAINS, MarkovChain, exact_chain
from didi.data.source import open_source


def test_each_row_of_the_exact_chain_is_a_permutation_of_the_same_probabilities():
    chain = exact_chain()
    generator = torch.Generator().manual_seed(0)
    for row in chain.transition:
        order = torch.randperm(4, generator=generator)
        assert row[order].tolist() == [0.72, 0.22, 0.05, 0.01]
    torch.testing.assert_close(chain.stationary @ chain.transition, chain.stationary)


def test_the_markov_chain_has_three_likely_successors_above_a_floor():
    chain = CHAINS["markov"]()
    assert torch.equal(chain.transition, MarkovChain(32, seed=0).transition)
    ordered = chain.transition.sort(descending=True).values
    torch.testing.assert_close(
        ordered[:, :3] / ordered[:, 3:4], torch.tensor([[301.0, 126, 76]]).double().expand(32, 3)
    )
    assert (ordered[:, 3:] == ordered[:, 3:4]).all()


@pytest.mark.parametrize(("name", "num_symbols"), [("markov", 32), ("exact", 4)])
def test_a_named_chain_is_a_corpus_with_a_symbol_for_each_state_and_a_mask(name, num_symbols):
    source = open_source(name, length=5, seed=3)
    assert (source.vocab_size, source.mask_id) == (num_symbols + 1, num_symbols)
    assert source.tokenizer.encode(f"s0 s{num_symbols - 1} [MASK]").ids == [0, num_symbols - 1, num_symbols]
    assert torch.equal(source.batch(7, 4), open_source(name, length=5, seed=3).batch(7, 4))
    assert not torch.equal(source.batch(7, 4), source.batch(8, 4))
    assert not torch.equal(source.validation, source.test)
    assert torch.equal(source.validation, open_source(name, length=5, seed=4).validation)
    pairs = source.validation[:, :2]
    counts = torch.bincount(pairs[:, 0] * num_symbols + pairs[:, 1], minlength=num_symbols**2).double()
    chain = CHAINS[name]()
    expected = (chain.stationary[:, None] * chain.transition).flatten()
    assert float((counts / counts.sum() - expected).abs().sum()) < 0.3 * (num_symbols / 32) ** 0.5
