"""Masked diffusion on all sequences of L = 2 positions with K = 3 symbols; the mask is symbol 3."""

import itertools
import math

import numpy as np
import pytest
import torch

from didi.diffusion.absorbing import (
    corrupt,
    is_masked_at,
    nelbo,
    posterior_probs,
    reveal_probability,
    subs_log_probs,
    token_log_probs,
)
from didi.diffusion.categorical import entropy
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import nelbo_weight, schedule_from_name

MASK = 3
CLEAN = list(itertools.product(range(3), repeat=2))
STATES = list(itertools.product(range(4), repeat=2))


@pytest.fixture(params=["log-linear", "cosine", "geometric"])
def schedule(request):
    return schedule_from_name(request.param)


@pytest.fixture(scope="module")
def data_probs():
    """Joint distribution of two dependent tokens, in the order of CLEAN."""
    return torch.randn(9, dtype=torch.float64, generator=named_generator("data")).softmax(0)


def forward(x, z, alpha):
    """Q(z | x) of Eq. 1, position by position."""
    return torch.tensor(
        [alpha if b == a else 1 - alpha if b == MASK else 0 for a, b in zip(x, z, strict=True)], dtype=torch.float64
    ).prod()


def transition(z_s, z_t, alpha_s, alpha_t):
    """Q(z_t | z_s): a visible token stays with probability alpha_t / alpha_s, a mask stays a mask."""
    kept = alpha_t / alpha_s
    probs = [
        float(b == MASK) if a == MASK else kept if b == a else 1 - kept if b == MASK else 0
        for a, b in zip(z_s, z_t, strict=True)
    ]
    return torch.tensor(probs, dtype=torch.float64).prod()


def is_reachable(x, z):
    return all(b in (a, MASK) for a, b in zip(x, z, strict=True))


@pytest.mark.parametrize(("s", "t"), [(0.3, 0.7), (0.05, 0.9), (0.01, 0.5), (0.2, 1.0)])
def test_the_posterior_is_bayes_rule_applied_to_the_forward_kernel(schedule, s, t):
    times = torch.tensor([s, t], dtype=torch.float64)
    alpha_s, alpha_t = schedule.alpha(times)
    for x, z_t in itertools.product(CLEAN, STATES):
        if forward(x, z_t, alpha_t) == 0:
            continue
        onehot = torch.nn.functional.one_hot(torch.tensor([x]), 4).double()
        posterior = posterior_probs(torch.tensor([z_t]), onehot, alpha_s[None], alpha_t[None], MASK)[0]
        by_bayes = torch.stack(
            [
                forward(x, z_s, alpha_s) * transition(z_s, z_t, alpha_s, alpha_t) / forward(x, z_t, alpha_t)
                for z_s in STATES
            ]
        )
        actual = torch.stack([posterior[0, z_s[0]] * posterior[1, z_s[1]] for z_s in STATES])
        torch.testing.assert_close(actual, by_bayes, rtol=1e-9, atol=1e-12)


def test_the_posterior_of_a_distribution_is_the_mean_of_the_posteriors():
    distribution = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64)
    alpha_s, alpha_t = torch.tensor([[0.8], [0.3]], dtype=torch.float64)
    z_t = torch.tensor([[MASK, 1]])
    mixed = posterior_probs(z_t, distribution.expand(1, 2, 4), alpha_s, alpha_t, MASK)
    posteriors = [
        posterior_probs(z_t, torch.eye(4).double()[k].expand(1, 2, 4), alpha_s, alpha_t, MASK) for k in range(4)
    ]
    torch.testing.assert_close(
        mixed, sum(prob * posterior for prob, posterior in zip(distribution, posteriors, strict=True))
    )
    assert mixed[0, 0, MASK] == pytest.approx(1 - float(reveal_probability(alpha_s, alpha_t)))
    assert mixed[0, 1].tolist() == [0, 1, 0, 0]


def test_corruption_follows_the_forward_kernel(schedule, chi_square):
    x, t = (2, 0), torch.tensor([0.6], dtype=torch.float64)
    alpha = schedule.alpha(t)
    uniforms = torch.rand(20_000, 2, dtype=torch.float64, generator=named_generator("corrupt"))
    z = corrupt(torch.tensor([x]).expand(20_000, 2), alpha.expand(20_000), MASK, uniforms)
    probs = torch.stack([forward(x, state, alpha[0]) for state in STATES])
    assert chi_square(z[:, 0] * 4 + z[:, 1], probs) > 1e-3


def test_the_set_of_masked_positions_grows_from_none_to_all_as_alpha_falls_from_1_to_0():
    uniforms = torch.rand(50, 8, dtype=torch.float64, generator=named_generator("grow"))
    masked = [is_masked_at(uniforms, torch.full((50,), alpha, dtype=torch.float64)) for alpha in (1, 0.7, 0.2, 0)]
    assert [mask.double().mean().item() for mask in (masked[0], masked[-1])] == [0, 1]
    for earlier, later in itertools.pairwise(masked):
        assert (later | ~earlier).all()
        assert (later & ~earlier).any()


def test_subs_keeps_visible_tokens_and_gives_the_mask_no_mass():
    logits = torch.randn(1, 3, 4, generator=named_generator("subs"))
    logits[..., MASK] = 50  # the network's logit of the mask is ignored
    log_probs = subs_log_probs(logits, torch.tensor([[MASK, 1, MASK]]), MASK)
    assert log_probs[0, 1].exp().tolist() == [0, 1, 0, 0]
    for position in (0, 2):
        assert log_probs[0, position, MASK] == -torch.inf
        torch.testing.assert_close(log_probs[0, position, :3], logits[0, position, :3].log_softmax(-1))
    torch.testing.assert_close(log_probs[0, [0, 2]], token_log_probs(logits[0, [0, 2]], MASK))


@pytest.mark.parametrize("shape", [(2, 4), (3, 2, 4)])
def test_without_a_mask_every_symbol_has_mass(shape):
    logits = torch.randn(shape, generator=named_generator("no mask"))
    torch.testing.assert_close(token_log_probs(logits, None), logits.log_softmax(-1))


def test_subs_log_probs_are_float32_and_differentiable_under_low_precision():
    logits = torch.zeros(1, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    log_probs = token_log_probs(logits, MASK)
    assert log_probs.dtype == torch.float32
    log_probs[0, 0, 0].backward()
    torch.testing.assert_close(logits.grad[0, 0].float(), torch.tensor([2 / 3, -1 / 3, -1 / 3, 0]), rtol=4e-3, atol=0)


def exact_denoiser(data_probs, z):
    """log p(x^l | visible tokens of z) for each position; [2, 4] with nothing on the mask."""
    consistent = torch.tensor([is_reachable(x, z) for x in CLEAN])
    joint = torch.where(consistent, data_probs, 0.0)
    joint = joint / joint.sum()
    marginals = torch.zeros(2, 4, dtype=torch.float64)
    for x, prob in zip(CLEAN, joint, strict=True):
        marginals[0, x[0]] += prob
        marginals[1, x[1]] += prob
    return marginals.log()


def expected_nelbo(x, log_probs_of, weight, alpha):
    """Expectation over z_t of the one-sample NELBO at one time."""
    states = [z for z in STATES if is_reachable(x, z)]
    nll = torch.stack([-log_probs_of(z)[[0, 1], list(x)] for z in states])
    is_masked = torch.tensor(states) == MASK
    probs = torch.stack([forward(x, z, alpha) for z in states])
    return (probs * nelbo(nll, is_masked, weight.expand(len(states)))).sum()


def integral_nelbo(x, log_probs_of, schedule, num_times):
    """Integral over t in [0, 1] by Gauss-Legendre quadrature."""
    nodes, node_weights = (torch.from_numpy(values) / 2 for values in np.polynomial.legendre.leggauss(num_times))
    t = 0.5 + nodes
    values = [
        expected_nelbo(x, log_probs_of, weight, alpha)
        for weight, alpha in zip(nelbo_weight(schedule, t), schedule.alpha(t), strict=True)
    ]
    return (node_weights * torch.stack(values)).sum()


# The integrand is a polynomial in t, a trigonometric polynomial, and for the geometric schedule a steep function. The
# geometric schedule runs from alpha = 1 - 1e-5 to 2e-9 only, which leaves out about 1e-5 of the integral.
@pytest.mark.parametrize(
    ("name", "num_times", "tolerance"), [("log-linear", 4, 1e-12), ("cosine", 12, 1e-12), ("geometric", 48, 1e-4)]
)
def test_the_nelbo_of_the_exact_posterior_is_minus_the_log_likelihood(data_probs, name, num_times, tolerance):
    schedule = schedule_from_name(name)
    for x, prob in list(zip(CLEAN, data_probs, strict=True))[::4]:
        actual = integral_nelbo(x, lambda z: exact_denoiser(data_probs, z), schedule, num_times)
        assert float(actual) == pytest.approx(-math.log(prob), rel=tolerance)


def test_the_mean_nelbo_of_the_exact_posterior_is_the_entropy_and_any_other_is_larger(data_probs):
    schedule = schedule_from_name("log-linear")

    def mean_nelbo(log_probs_of):
        values = [integral_nelbo(x, log_probs_of, schedule, num_times=4) for x in CLEAN]
        return (data_probs * torch.stack(values)).sum()

    exact = mean_nelbo(lambda z: exact_denoiser(data_probs, z))
    entropy_of_data = entropy(data_probs.log())
    assert exact == pytest.approx(float(entropy_of_data), rel=1e-9)
    independent = mean_nelbo(lambda z: exact_denoiser(data_probs, (MASK, MASK)))
    first, second = (exact_denoiser(data_probs, (MASK, MASK))[position, :3] for position in (0, 1))
    assert independent == pytest.approx(float(entropy(first) + entropy(second)), rel=1e-9)
    assert independent > exact + 1e-3


def test_the_nelbo_reads_masked_positions_only():
    nll = torch.tensor([[1.0, torch.inf], [torch.nan, 2.0], [5.0, 7.0]])
    is_masked = torch.tensor([[True, False], [False, True], [False, False]])
    assert nelbo(nll, is_masked, torch.tensor([3.0, 0.5, 9.0])).tolist() == [3.0, 1.0, 0.0]
