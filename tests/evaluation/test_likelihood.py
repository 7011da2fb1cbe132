"""Likelihoods of sequences: NELBOs of denoisers, by enumerated masks, and exact values of autoregressive networks."""

import itertools
import math

import pytest
import torch

from didi.diffusion.absorbing import Absorbing, subs_log_probs
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import low_discrepancy_times
from didi.errors import UsageError
from didi.evaluation.likelihood import likelihood
from didi.methods.elbo import losses
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.nelbo import nelbo_draws

PROCESS = Absorbing(4)


def enumerated_nelbo(denoiser, x0):
    """Sum over n of 1/n times the mean cross-entropy of all masks of n positions, without noise conditioning."""
    length = x0.shape[1]
    total = 0.0
    for n in range(1, length + 1):
        for chosen in itertools.combinations(range(length), n):
            z = x0.clone()
            z[:, list(chosen)] = denoiser.mask_id
            log_probs = subs_log_probs(denoiser(z, None), z, denoiser.mask_id)
            nll = -log_probs.gather(2, x0.unsqueeze(2)).squeeze(2)[:, list(chosen)].sum(1)
            total = total + nll / n / math.comb(length, n)
    return total


@pytest.mark.slow
@torch.no_grad()
def test_draws_estimate_the_enumerated_nelbo_without_bias(make_dit):
    denoiser = make_dit(vocab_size=5, length=4, scale=2.0)
    x0 = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]])
    exact = enumerated_nelbo(denoiser, x0).double()
    draws = nelbo_draws(
        denoiser, PROCESS, Canvas.free(x0), 6000, [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    )
    error = draws.std(1) / 6000**0.5
    assert ((draws.mean(1) - exact) / error).abs().max() < 4
    assert (error / exact).max() < 0.02  # small enough to detect a wrong weight
    generator = torch.Generator().manual_seed(2)
    t = low_discrepancy_times(20_000, generator, t_min=1e-5)
    uniforms = torch.rand(20_000, 4, 1, dtype=torch.float64, generator=generator)
    clean = x0[:1].expand(20_000, -1)
    by_time = PROCESS.loss_weight(t) * losses(denoiser, PROCESS, clean, t, PROCESS.corrupt(clean, t, uniforms)).sum(1)
    assert float(by_time.mean()) == pytest.approx(float(exact[0]), rel=0.05)


@pytest.mark.slow
def test_the_noise_level_of_a_pass_fits_its_number_of_masks(make_dit):
    passes = []
    denoiser = make_dit(vocab_size=5, length=8, is_time_conditioned=True)
    features = denoiser.features

    def recording(z, level, attention_mask):
        passes.append((1 - (-level.double()).exp(), (z == denoiser.mask_id).sum(1)))
        return features(z, level, attention_mask)

    denoiser.features = recording
    x0 = torch.zeros(1, 8, dtype=torch.long)
    with torch.no_grad():
        nelbo_draws(denoiser, PROCESS, Canvas.free(x0), 8000, [torch.Generator().manual_seed(0)])
    share, size = passes[0]
    assert torch.bincount(size).tolist() == [0] + [1000] * 8  # evenly spread
    for n in (1, 4, 8):
        assert float(share[size == n].mean()) == pytest.approx(n / 9, abs=0.02)  # the mean of Beta(n, 9 - n)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_masks_do_not_depend_on_the_batch(make_dit, batch_size):
    denoiser = make_dit(vocab_size=5, length=6)
    rows = torch.randint(4, (9, 6), generator=torch.Generator().manual_seed(0))
    result = likelihood(denoiser, Absorbing(denoiser.mask_id), rows, num_draws=3, batch_size=batch_size)
    assert result.nats == pytest.approx(
        likelihood(denoiser, Absorbing(denoiser.mask_id), rows, num_draws=3).nats, rel=1e-6
    )
    assert (result.num_sequences, result.num_tokens, result.num_draws, result.is_exact) == (9, 54, 3, False)
    assert result.nats_ci[0] < result.nats < result.nats_ci[1]
    assert result.perplexity == pytest.approx(math.exp(result.nats))
    assert result.perplexity_ci[0] < result.perplexity < result.perplexity_ci[1]


@pytest.mark.slow
def test_noise_is_the_standard_error_over_masks(make_dit):
    denoiser = make_dit(vocab_size=9, length=6, scale=2.0)
    rows = torch.randint(8, (40, 6), generator=torch.Generator().manual_seed(0))
    results = [likelihood(denoiser, Absorbing(denoiser.mask_id), rows, num_draws=4, seed=seed) for seed in range(16)]
    spread = torch.tensor([result.nats for result in results]).std()
    noise = sum(result.noise for result in results) / 16
    assert 0.8 * spread < noise < 4 * spread  # too large rather than too small, since mask sizes are spread evenly
    assert math.isnan(likelihood(denoiser, Absorbing(denoiser.mask_id), rows, num_draws=1).noise)


def test_an_autoregressive_network_is_scored_exactly():
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=9, mask_id=8, length=6, hidden_size=8, num_blocks=1, num_heads=2)
    network = AutoregressiveLM(shape).eval()
    rows = torch.randint(8, (5, 6), generator=torch.Generator().manual_seed(0))
    result = likelihood(network, Absorbing(network.mask_id), rows, batch_size=2)
    with torch.no_grad():
        assert result.nats == pytest.approx(float(network.nll(rows).mean()))
    assert (result.is_exact, result.noise, result.num_draws) == (True, 0, 1)


def test_nothing_to_score_is_refused(make_dit):
    denoiser = make_dit(vocab_size=5, length=6)
    with pytest.raises(UsageError, match="got 0 and 4"):
        likelihood(denoiser, PROCESS, torch.zeros(0, 6, dtype=torch.long), num_draws=4)
    with pytest.raises(UsageError, match="got 1 and 0"):
        likelihood(denoiser, PROCESS, torch.zeros(1, 6, dtype=torch.long), num_draws=0)


@torch.no_grad()
def test_equal_corrupted_sequences_share_a_pass_and_padding_differs_from_tokens(make_dit, monkeypatch):
    network = make_dit(vocab_size=5, length=3, scale=2.0)
    tokens = torch.tensor([[2, 0, 0], [2, 0, 0], [2, 0, 0], [3, 0, 0]])  # padding is 0 too
    canvas = Canvas.padded(tokens, torch.tensor([1, 2, 3, 1]))
    rows_read, features = [], network.features

    def recording(z, level, attention_mask=None):
        rows_read.append(len(z))
        return features(z, level, attention_mask)

    monkeypatch.setattr(network, "features", recording)
    generators = [named_generator("row", row) for row in range(4)]
    draws = nelbo_draws(network, PROCESS, canvas, 64, generators)
    assert rows_read == [1 + 3 + 7]  # the masks of 1, 2 and 3 positions; the fourth row is masked like the first
    for row, length in enumerate((1, 2, 3, 1)):
        alone = nelbo_draws(
            network, PROCESS, Canvas.free(tokens[row : row + 1, :length]), 64, [named_generator("row", row)]
        )
        assert torch.allclose(draws[row], alone[0], rtol=1e-5)
