"""Joint divergence: fits of chains and networks, intervals, and comparisons of two sets."""

import math
from dataclasses import asdict

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.errors import UsageError
from didi.evaluation.joint import JointSettings, compare_joint, default_settings, joint_divergence
from didi.evaluation.joint_chain import ChainFit
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM

SMALL = MarkovChain(num_symbols=4, seed=1)
LENGTH = 7


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def all_sequences(chain, length):
    """All sequences of a small chain."""
    num = chain.num_symbols
    ids = torch.arange(num**length)
    return torch.stack([ids // num**pos % num for pos in reversed(range(length))], 1)


def drawn(probs, num, seed):
    return all_sequences(SMALL, LENGTH)[torch.multinomial(probs, num, replacement=True, generator=seeded(seed))]


def exact_kl(probs):
    log_q = SMALL.log_likelihood(all_sequences(SMALL, LENGTH))
    return float(torch.special.xlogy(probs, probs).sum() - (probs * log_q).sum())


def with_equal_ends():
    """The chain's distribution with more weight on equal first and last symbols, which no table of pairs represents."""
    sequences = all_sequences(SMALL, LENGTH)
    probs = SMALL.log_likelihood(sequences).exp() * torch.where(sequences[:, 0] == sequences[:, -1], 9.0, 1.0)
    return probs / probs.sum()


def tiny_network(randomise):
    shape = {"vocab_size": 5, "mask_id": 4, "length": LENGTH, "hidden_size": 16, "num_blocks": 1, "num_heads": 2}
    return randomise(AutoregressiveLM(AutoregressiveConfig(**shape)))


def test_the_fit_starts_as_the_chain():
    rows = SMALL.sample(20, LENGTH, seeded(0))
    nll = ChainFit(SMALL, LENGTH, 0).eval().nll(rows)
    torch.testing.assert_close(nll.double().sum(1), -SMALL.log_likelihood(rows), atol=1e-5, rtol=1e-5)


def test_the_table_of_transitions_is_learned_in_closed_form():
    rows = torch.multinomial(SMALL.stationary, 4000 * LENGTH, replacement=True, generator=seeded(1)).view(-1, LENGTH)
    fit = ChainFit(SMALL, LENGTH, 0)
    fit.start(rows[:3000], rows[3000:])
    table = fit.log_table.exp()
    torch.testing.assert_close(table.sum(1), torch.ones(5).double())
    torch.testing.assert_close(table, SMALL.stationary.expand(5, 4), atol=0.02, rtol=0)
    chain = SMALL.sample(4000, LENGTH, seeded(2))
    fit = ChainFit(SMALL, LENGTH, 0)
    fit.start(chain[:3000], chain[3000:])
    torch.testing.assert_close(fit.log_table[:4].exp(), SMALL.transition, atol=0.02, rtol=0)


def test_a_mixture_of_chain_and_frequencies_is_fitted_with_a_small_divergence():
    mixture, divergences = 0.75 * SMALL.transition + 0.25 * SMALL.stationary, []
    for seed in range(6):
        generator = seeded(seed)
        rows = torch.multinomial(SMALL.stationary, 600, replacement=True, generator=generator)[:, None]
        for _ in range(LENGTH - 1):
            rows = torch.cat([rows, torch.multinomial(mixture[rows[:, -1]], 1, generator=generator)], 1)
        fit = ChainFit(SMALL, LENGTH, 0)
        fit.start(rows[:400], rows[400:])
        divergences.append(SMALL.stationary @ (mixture * (mixture.log() - fit.log_table[:4])).sum(1))
    assert 0 <= float(sum(divergences)) / 6 < 0.001  # 0.002 if no candidate is a mixture


def test_the_table_is_chosen_on_held_out_sequences():
    chain = MarkovChain()
    rows = chain.sample(60, 32, seeded(10))
    fit = ChainFit(chain, 32, 0)
    fit.start(rows[:40], rows[40:])  # 1,280 transitions for 1,024 cells
    table, exact = fit.log_table[:-1], chain.transition.log()
    divergence = float((chain.stationary[:, None] * chain.transition * (exact - table)).sum())
    assert divergence < 0.01  # 0.09 if the table is chosen on the sequences that it counts


@pytest.mark.slow
def test_samples_of_the_chain_have_no_joint_divergence():
    estimate = joint_divergence(SMALL.sample(2000, LENGTH, seeded(3)), SMALL, JointSettings(folds=2, epochs=2))
    assert estimate.kl == pytest.approx(0, abs=0.02)
    assert estimate.ci[0] < 0.01


@pytest.mark.slow
def test_the_interval_covers_the_divergence_of_independent_symbols():
    probs = SMALL.stationary[all_sequences(SMALL, LENGTH)].prod(1)
    estimate = joint_divergence(drawn(probs, 1500, 4), SMALL, JointSettings(folds=2, epochs=1))
    exact = exact_kl(probs)
    assert exact == pytest.approx((LENGTH - 1) * exact_kl_of_pairs())
    assert estimate.ci[0] < exact < estimate.ci[1]
    assert estimate.ci[0] < estimate.kl < estimate.ci[1]
    assert sum(estimate.folds) / 2 == pytest.approx(estimate.kl)


def exact_kl_of_pairs():
    p, q = (SMALL.stationary[:, None] * SMALL.stationary).flatten(), SMALL.ngram_probs(2)
    return float((p * (p / q).log()).sum())


@pytest.mark.slow
def test_the_network_learns_dependencies_beyond_pairs():
    probs = with_equal_ends()
    exact, estimate = exact_kl(probs), joint_divergence(drawn(probs, 4096, 5), SMALL, JointSettings(folds=2))
    assert estimate.kl > 0.75 * exact
    assert estimate.kl < exact + 2 * (estimate.ci[1] - estimate.kl)


@pytest.mark.slow
def test_the_divergence_from_a_network_is_a_lower_bound_and_leaves_the_network_unchanged(randomise):
    network = tiny_network(randomise)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = SMALL.sample(64, LENGTH, seeded(6))
    log_q = -network.nll(rows).double().sum(1)
    settings = JointSettings(folds=2, epochs=4, batch_size=16, learning_rate=1e-2)
    estimate = joint_divergence(rows, network, settings)
    assert estimate.kl > 0.5  # random weights are far from the chain, and a few updates lower the distance
    exact = float((SMALL.log_likelihood(rows) - log_q.detach()).mean())
    assert estimate.kl < exact  # a lower bound
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    again = joint_divergence(rows, network, settings)
    assert torch.equal(estimate.log_ratios, again.log_ratios)


@pytest.mark.slow
def test_sequences_are_scored_by_a_network_that_was_not_fitted_to_them(monkeypatch):
    from didi.evaluation import joint

    fits = []
    original = joint._fitted

    def recording(start, train, stop, settings):
        fits.append((train.clone(), stop.clone()))
        return original(start, train, stop, settings)

    monkeypatch.setattr(joint, "_fitted", recording)
    rows = all_sequences(SMALL, LENGTH)[torch.randperm(4**LENGTH, generator=seeded(7))[:80]]
    joint_divergence(rows, SMALL, JointSettings(folds=4, epochs=1))
    assert len(fits) == 4
    held_out = []
    for train, stop in fits:
        used = {tuple(row) for row in torch.cat([train, stop]).tolist()}
        assert len(used) == len(train) + len(stop) == 60
        held_out += [tuple(row) for row in rows.tolist() if tuple(row) not in used]
    assert sorted(held_out) == sorted(map(tuple, rows.tolist()))


@pytest.mark.slow
def test_a_fit_has_the_configured_optimizer_and_a_rate_that_rises_for_20_updates_and_falls_as_a_cosine(
    monkeypatch, randomise
):
    rates, optimizers = [], []

    class Recording(torch.optim.AdamW):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            optimizers.append(self)

        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    settings = JointSettings(folds=2, epochs=8, patience=9, batch_size=1, learning_rate=0.01, weight_decay=0.3)
    joint_divergence(SMALL.sample(8, LENGTH, seeded(11)), tiny_network(randomise), settings)
    expected = [0.01 * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / 24)) / 2 for step in range(24)]
    assert rates == pytest.approx(2 * expected)
    assert {(o.defaults["weight_decay"], o.defaults["betas"]) for o in optimizers} == {(0.3, (0.9, 0.98))}


def test_default_settings_are_those_of_the_reported_results(randomise):
    chain = {"folds": 4, "stop_fraction": 0.125, "epochs": 16, "patience": 6, "batch_size": 32, "seed": 0}
    chain |= {"learning_rate": 3e-3, "weight_decay": 0.1}
    text = {"folds": 2, "epochs": 3, "patience": 1, "batch_size": 8, "learning_rate": 2e-3, "weight_decay": 0.05}
    assert asdict(default_settings(SMALL)) == chain
    assert asdict(default_settings(tiny_network(randomise))) == chain | text


def test_what_cannot_be_fitted_is_refused(randomise):
    rows = SMALL.sample(16, LENGTH, seeded(8))
    with pytest.raises(UsageError, match="4 folds takes 8 samples or more; got 7"):
        joint_divergence(rows[:7], SMALL)
    with pytest.raises(UsageError, match="has 4 symbols; got token 4"):
        joint_divergence(torch.full((16, LENGTH), 4), SMALL)
    with pytest.raises(UsageError, match="reads 7 tokens; got sequences of 8"):
        joint_divergence(torch.zeros(16, 8).long(), tiny_network(randomise))
    with pytest.raises(UsageError, match="got 1, 16 and 32"):
        JointSettings(folds=1)
    with pytest.raises(UsageError, match="got 4, 0 and 32"):
        JointSettings(epochs=0)
    with pytest.raises(UsageError, match="got 4, 16 and 0"):
        JointSettings(batch_size=0)
    with pytest.raises(UsageError, match="between 0 and 1; got 1"):
        JointSettings(stop_fraction=1.0)


def test_two_sets_are_compared_pair_by_pair():
    generator = seeded(9)
    shared = 3 + torch.randn(500, generator=generator, dtype=torch.float64)
    comparison = compare_joint(shared + 1, shared)
    assert comparison.gap == pytest.approx(1)
    assert comparison.gap_ci == pytest.approx((1, 1))
    assert comparison.ratio == pytest.approx(float((shared + 1).sum() / shared.sum()))
    assert comparison.ratio_ci[0] < comparison.ratio < comparison.ratio_ci[1] < comparison.ratio + 0.02
    assert math.isnan(compare_joint(shared, -shared / (2 * shared.sum())).ratio)  # a divergence of -0.5
    noisy = shared + torch.randn(500, generator=generator, dtype=torch.float64)
    first, second = (compare_joint(noisy, shared, seed=seed) for seed in (0, 1))
    assert first.gap_ci != second.gap_ci
    assert first.ratio_ci != second.ratio_ci
    with pytest.raises(ValueError, match="got 500 and 499"):
        compare_joint(shared, shared[1:])
