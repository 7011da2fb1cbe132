"""Divergences of the n-grams of samples from those of a Markov chain."""

import itertools
import math
import statistics

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.evaluation import ngrams
from didi.evaluation.ngrams import ngram_divergence

CHAIN = MarkovChain()
SMALL = MarkovChain(num_symbols=4, seed=1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_probabilities_of_ngrams_are_products_of_transitions():
    pairs, triples = SMALL.ngram_probs(2), SMALL.ngram_probs(3)
    assert torch.equal(SMALL.ngram_probs(1), SMALL.stationary)
    assert pairs[1 * 4 + 2] == SMALL.stationary[1] * SMALL.transition[1, 2]
    assert triples[3 * 16 + 4 + 2] == SMALL.stationary[3] * SMALL.transition[3, 1] * SMALL.transition[1, 2]
    assert triples.sum() == pytest.approx(1)
    torch.testing.assert_close(triples.view(16, 4).sum(1), pairs)


def test_estimates_without_corrections_equal_those_by_hand(monkeypatch):
    """Four sequences of three symbols: counts by hand, and each left out in turn."""
    rows = torch.tensor([[0, 1, 1], [1, 1, 0], [2, 1, 1], [0, 1, 3]])
    q = SMALL.ngram_probs(2).view(4, 4)

    def plain(rows):
        pairs = [(a, b) for row in rows.tolist() for a, b in itertools.pairwise(row)]
        num = len(pairs)
        counts = {pair: pairs.count(pair) for pair in set(pairs)}
        forward = sum(c / num * math.log(c / num / q[pair]) for pair, c in counts.items())
        psi = torch.special.digamma
        reverse = sum(
            q[a, b] * (q[a, b].log() + math.log(num) - psi(torch.tensor(counts.get((a, b), 0) + 1.0).double()))
            for a in range(4)
            for b in range(4)
        )
        return forward, float(reverse)

    monkeypatch.setattr(ngrams, "MIN_NGRAMS_PER_CELL", 0)
    monkeypatch.setattr(ngrams, "_null", lambda *_: (ngrams._Estimate(0.0, 0.0),) * 2)
    estimate = ngram_divergence(rows, SMALL, 2)
    without = [plain(torch.cat([rows[:i], rows[i + 1 :]])) for i in range(4)]
    intervals = (estimate.kl_ci, estimate.reverse_kl_ci)
    for which, (value, ci) in enumerate(zip((estimate.kl, estimate.reverse_kl), intervals, strict=True)):
        each = [values[which] for values in without]
        assert value == pytest.approx(4 * plain(rows)[which] - 3 * statistics.fmean(each))
        error = math.sqrt(3 * statistics.pvariance(each))
        assert ci == pytest.approx((value - 1.959964 * error, value + 1.959964 * error))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "tolerance"), [(2, 0.0005), (3, 0.003)])
def test_samples_of_the_chain_have_no_divergence(n, tolerance):
    """Plug-in estimates are 0.018 (pairs) and 0.10 (triples) here."""
    estimates = [ngram_divergence(CHAIN.sample(1024, 32, seeded(seed)), CHAIN, n) for seed in range(10)]
    assert statistics.fmean(each.kl for each in estimates) == pytest.approx(0, abs=tolerance)
    assert statistics.fmean(each.reverse_kl for each in estimates) == pytest.approx(0, abs=tolerance)
    if n == 3:  # 30,720 triples in 32,768 cells
        assert all(math.isnan(each.kl_ci[0]) and math.isnan(each.reverse_kl_ci[1]) for each in estimates)
        return
    assert sum(each.kl_ci[0] <= 0 <= each.kl_ci[1] for each in estimates) >= 8
    assert sum(each.reverse_kl_ci[0] <= 0 <= each.reverse_kl_ci[1] for each in estimates) >= 8


@pytest.mark.slow
def test_a_known_divergence_lies_within_the_interval():
    """The chain with a third of its transitions replaced by independent draws: another chain, so all is exact."""
    other = MarkovChain()
    other.transition = 2 / 3 * CHAIN.transition + CHAIN.stationary / 3
    for n in (2, 3):
        p, q = other.ngram_probs(n), CHAIN.ngram_probs(n)
        exact, reverse = float((p * (p / q).log()).sum()), float((q * (q / p).log()).sum())
        estimate = ngram_divergence(other.sample(4096, 32, seeded(2)), CHAIN, n)
        if n == 2:
            assert estimate.kl_ci[0] < exact < estimate.kl_ci[1]
            assert estimate.reverse_kl_ci[0] < reverse < estimate.reverse_kl_ci[1]
        assert estimate.kl == pytest.approx(exact, rel=0.012 if n == 3 else 0.03)  # of triples without halves: 0.019
        assert estimate.reverse_kl == pytest.approx(reverse, rel=0.1 if n == 3 else 0.03)


def test_the_intervals_cover_the_divergences_of_independent_symbols():
    rows = torch.multinomial(SMALL.stationary, 2000 * 12, replacement=True, generator=seeded(3)).view(2000, 12)
    p, q = (SMALL.stationary[:, None] * SMALL.stationary).flatten(), SMALL.ngram_probs(2)
    estimate = ngram_divergence(rows, SMALL, 2)
    assert estimate.kl_ci[0] < float((p * (p / q).log()).sum()) < estimate.kl_ci[1]
    assert estimate.reverse_kl_ci[0] < float((q * (q / p).log()).sum()) < estimate.reverse_kl_ci[1]
    p, q = (p[:, None] * SMALL.stationary).flatten(), SMALL.ngram_probs(3)
    estimate = ngram_divergence(rows, SMALL, 3)
    assert estimate.kl_ci[0] < float((p * (p / q).log()).sum()) < estimate.kl_ci[1]
    assert estimate.reverse_kl_ci[0] < float((q * (q / p).log()).sum()) < estimate.reverse_kl_ci[1]


def test_few_sequences_have_no_estimate_and_wrong_input_is_refused():
    estimate = ngram_divergence(torch.zeros(3, 4).long(), SMALL, 2)
    assert math.isnan(estimate.kl)
    assert math.isnan(estimate.reverse_kl_ci[1])
    with pytest.raises(ValueError, match=r"n must lie in \[1, 4\].*got 5"):
        ngram_divergence(torch.zeros(8, 4).long(), SMALL, 5)
    with pytest.raises(ValueError, match="0 to 3; got 4"):
        ngram_divergence(torch.full((8, 4), 4), SMALL, 2)
