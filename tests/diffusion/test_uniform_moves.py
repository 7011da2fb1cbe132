"""Draws and log-probabilities of a move of uniform-state diffusion against the full posterior."""

import pytest
import torch

from didi.diffusion.uniform import Uniform
from didi.diffusion.uniform_moves import draw_move, move_log_probs, symbols

NUM = 5
RATES = [(0.0, 0.4), (0.0, 1.0), (0.3, 0.7), (0.6, 1.0), (0.999, 1.0), (1e-9, 2e-9)]


@pytest.fixture
def logits():
    return 3 * torch.randn(NUM, NUM, generator=torch.Generator().manual_seed(0))


def posterior(logits, alpha_t, alpha_s):
    """Probabilities of the next token, [state, token]; row i of the logits is the prediction in state i."""
    weights = Uniform(NUM).reverse_weights(logits, torch.arange(NUM), alpha_t, alpha_s)
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize(("alpha_t", "alpha_s"), RATES)
def test_log_probabilities_follow_the_normalised_posterior(logits, alpha_t, alpha_s):
    state, token = (grid.flatten() for grid in torch.meshgrid(torch.arange(NUM), torch.arange(NUM), indexing="ij"))
    logits.requires_grad_(True)
    actual = move_log_probs(logits.log_softmax(-1)[state], state, token, alpha_t, alpha_s)
    expected = posterior(logits, alpha_t, alpha_s).log().flatten()
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)
    weight = torch.randn(NUM**2, generator=torch.Generator().manual_seed(1)).double()
    gradients = [torch.autograd.grad(values @ weight, logits)[0] for values in (actual, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("alpha_t", "alpha_s"), RATES)
def test_draws_follow_the_posterior(logits, alpha_t, alpha_s):
    num = 20_000
    state = torch.arange(NUM).repeat_interleave(num)
    uniforms = torch.rand(NUM * num, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    alpha = torch.full_like(uniforms, alpha_s)
    drawn = draw_move(logits.log_softmax(-1)[state], state, uniforms, alpha_t, alpha).view(NUM, num)
    for tokens, probs in zip(drawn, posterior(logits, alpha_t, alpha_s), strict=True):
        counts = torch.bincount(tokens, minlength=NUM)
        error = (num * probs * (1 - probs)).sqrt()
        assert ((counts - num * probs).abs() <= 4 * error + 1).all()


def test_the_largest_uniform_number_draws_a_token_of_positive_probability(logits):
    """Rounding can make the number of the prediction 1, and the last tokens have probability 0, as with top-p."""
    num = 1000
    log_probs = logits[:1].index_fill(1, torch.tensor([3, 4]), -torch.inf).log_softmax(-1).expand(num, -1)
    uniforms, state = torch.full((num,), 1 - 2**-53, dtype=torch.float64), torch.zeros(num).long()
    for alpha_t in (0.3, 0.6, 0.71):
        alpha_s = torch.linspace(alpha_t + 0.01, 1, num, dtype=torch.float64)
        assert (draw_move(log_probs, state, uniforms, alpha_t, alpha_s) == 2).all()


def test_numbers_outside_the_range_give_the_nearest_symbol():
    numbers = torch.tensor([-0.3, 0.0, 0.24, 0.25, 0.999, 1.0, 1.3])
    assert symbols(numbers, 4).tolist() == [0, 0, 0, 1, 3, 3, 3]
