"""Uniform-state diffusion as the argmax of Gaussian diffusion on one-hot vectors, against quadrature and draws."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import log_ndtr
from scipy.stats import norm

from didi.diffusion.gaussian import (
    GaussianSchedule,
    gamma_at,
    latents,
    relaxed,
    uniform_alpha,
    uniform_alpha_prime,
)
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import Schedule
from didi.errors import UsageError

SIZES = [4, 33, 8192, 50_257]
GAMMAS = torch.linspace(-6, 4, 11, dtype=torch.float64)


def alpha_by_scipy(gamma, num):
    """The diffusion transformation operator T of the paper: P(the clean entry is the largest), rescaled to [0, 1]."""
    ratio = math.exp(-gamma / 2)
    mass, _ = quad(
        lambda z: norm.pdf(z, loc=ratio) * np.exp((num - 1) * log_ndtr(z)), ratio - 10, ratio + 10,
        epsabs=1e-12, epsrel=1e-12, limit=400, points=[ratio],
    )  # fmt: skip
    return num / (num - 1) * (mass - 1 / num)


@pytest.mark.parametrize("num", SIZES)
def test_alpha_is_the_integral_of_the_paper(num):
    expected = torch.tensor([alpha_by_scipy(gamma, num) for gamma in GAMMAS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(uniform_alpha(GAMMAS, num), expected, rtol=0, atol=1e-9)


def test_alpha_of_two_symbols_has_a_closed_form():
    ratio = (-GAMMAS / 2).exp()
    expected = 2 * torch.special.ndtr(ratio / math.sqrt(2)) - 1
    torch.testing.assert_close(uniform_alpha(GAMMAS, 2), expected, rtol=0, atol=1e-13)
    slope = -ratio / math.sqrt(4 * math.pi) * (-ratio.square() / 4).exp()
    torch.testing.assert_close(uniform_alpha_prime(GAMMAS, 2), slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("num", [2, *SIZES])
def test_the_derivative_equals_finite_differences(num):
    step = 1e-4
    differences = (uniform_alpha(GAMMAS + step, num) - uniform_alpha(GAMMAS - step, num)) / (2 * step)
    torch.testing.assert_close(uniform_alpha_prime(GAMMAS, num), differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("num", [2, *SIZES, 10**6])
def test_alpha_falls_from_1_to_0(num):
    gamma = torch.linspace(-12, 40, 500, dtype=torch.float64)
    alpha = uniform_alpha(gamma, num)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (alpha.diff() <= 1e-15).all()
    inside = (alpha > 1e-10) & (alpha < 1 - 1e-10)
    assert (alpha[inside].diff() < 0).all()
    assert (alpha[0], alpha[-1]) == (pytest.approx(1, abs=1e-14), pytest.approx(0, abs=1e-8))
    assert (uniform_alpha_prime(gamma, num) <= 0).all()


@pytest.mark.parametrize("num", [2, *SIZES])
def test_gamma_at_inverts_uniform_alpha(num):
    alpha = torch.tensor([0.999, 0.95, 0.5, 0.05, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(uniform_alpha(gamma_at(alpha, num), num), alpha, rtol=0, atol=1e-12)


def test_the_published_range_on_openwebtext_is_alpha_from_95_to_5_percent():
    published = torch.tensor([-3.55, -1.85], dtype=torch.float64)
    torch.testing.assert_close(
        uniform_alpha(published, 50_257), torch.tensor([0.95, 0.05], dtype=torch.float64), rtol=0, atol=5e-3
    )


@pytest.mark.parametrize("alpha", [0.8, 0.2])
def test_the_argmax_of_latents_has_the_uniform_state_marginal(chi_square, alpha):
    num, draws = 5, 20_000
    gamma = gamma_at(torch.tensor(alpha), num).expand(draws)
    noise = torch.randn(draws, 1, num, generator=named_generator("gaussian"))
    z = latents(torch.full((draws, 1), 3), gamma, noise).argmax(-1)[:, 0]
    expected = torch.full((num,), (1 - alpha) / num)
    expected[3] += alpha
    assert chi_square(z, expected) > 1e-3


def test_latents_are_the_scaled_token_plus_the_scaled_noise():
    noise = torch.randn(2, 3, 4, generator=named_generator("latents"))
    copy, x0 = noise.clone(), torch.tensor([[0, 1, 2], [3, 3, 0]])
    gamma = torch.tensor([-2.0, 0.5], dtype=torch.float64)
    variance = torch.sigmoid(gamma)[:, None, None]
    one_hot = torch.nn.functional.one_hot(x0, 4)
    expected = (1 - variance).sqrt() * one_hot + variance.sqrt() * noise
    actual = latents(x0, gamma, noise)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected.float())
    assert torch.equal(noise, copy)


def test_with_less_noise_more_tokens_are_clean_and_clean_tokens_stay_clean():
    """With the same noise, a token that is clean at the later time is clean at the earlier one."""
    x0 = torch.randint(6, (64, 8), generator=named_generator("x0"))
    noise = torch.randn(64, 8, 6, generator=named_generator("shared"))
    early, late = (latents(x0, torch.full((64,), gamma), noise).argmax(-1) for gamma in (-2.0, 1.0))
    assert (early == x0)[late == x0].all()
    assert (early == late)[early != x0].all()
    assert (early == x0).sum() > (late == x0).sum()


def test_the_relaxation_is_a_tempered_softmax_and_one_hot_in_the_limit():
    x0 = torch.randint(5, (3, 4), generator=named_generator("x0"))
    noise, gamma = torch.randn(3, 4, 5, generator=named_generator("soft")), torch.full((3,), -1.0)
    w = latents(x0, gamma, noise)
    for tau in (1.0, 0.1):
        z, soft = relaxed(x0, gamma, noise, tau)
        expected = (w / tau).exp() / (w / tau).exp().sum(-1, keepdim=True)
        torch.testing.assert_close(soft, expected)
        assert torch.equal(z, w.argmax(-1))
    z, soft = relaxed(x0, gamma, noise, 1e-9)
    assert torch.equal(soft, torch.nn.functional.one_hot(z, 5).float())


def test_the_schedule_is_linear_in_gamma_between_its_ends():
    schedule = GaussianSchedule(33, -3.0, 1.0)
    assert isinstance(schedule, Schedule)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    gamma = torch.tensor([-3.0, -2.0, 1.0], dtype=torch.float64)
    assert torch.equal(schedule.gamma(t), gamma)
    assert torch.equal(schedule.alpha(t), uniform_alpha(gamma, 33))
    step = 1e-4
    differences = (schedule.alpha(t + step) - schedule.alpha(t - step)) / (2 * step)
    torch.testing.assert_close(schedule.alpha_prime(t), differences, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1.0, 1.0), "gamma_min is less than gamma_max, both finite; got 1.0 and 1.0"),
        ((4, -math.inf, 1.0), "both finite; got -inf"),
        ((4, math.nan, 1.0), "both finite; got nan"),
        ((1, 0.0, 1.0), "2 symbols or more; got 1"),
    ],
)
def test_an_empty_range_of_gamma_and_a_single_symbol_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        GaussianSchedule(*arguments)
    GaussianSchedule(2, 0.0, 1.0)
