"""The policy gradient is the gradient of the integral KL divergence, by enumeration of all outcomes.

K = 2 symbols, L = 2 positions, mask = 2. The student is a table: free logits for each position of each of the 9 states.
It generates in two moves, all masks -> z_tau -> x, and x is corrupted to z_t. All expectations are finite sums.
Reductions A, B and C are those of ``didi.objectives.didi``.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import LogLinear, TimeDensity, time_weight
from didi.objectives.didi import Advantages, advantages, policy_loss, second_move_score

MASK = 2
STATES = torch.tensor(list(itertools.product(range(3), repeat=2)))
CLEAN = torch.tensor(list(itertools.product(range(2), repeat=2)))


def randn(*shape, name):
    return torch.randn(*shape, dtype=torch.float64, generator=named_generator("toy", name))


STUDENT = randn(9, 2, 2, name="student")
TEACHER = randn(4, name="teacher").log_softmax(0)  # an arbitrary distribution of clean sequences


def corruption_kernel(alpha):
    """Q(z | x) for each clean sequence and each state, [4, 9]."""
    kept = CLEAN[:, None] == STATES
    return torch.where(STATES == MASK, 1 - alpha, alpha * kept).prod(-1)


def transition_log_probs(table, start, end):
    """Log-probabilities of tokens of ``end`` at masked positions of ``start``, 0 elsewhere; any batch shape."""
    log_probs = table.log_softmax(-1)[state_index(start)]
    chosen = log_probs.gather(-1, end.clamp(max=1)[..., None]).squeeze(-1)
    return torch.where((start == MASK) & (end != MASK), chosen, 0.0)


def state_index(z):
    return z[..., 0] * 3 + z[..., 1]


def reachable(start, ends):
    """The rows of ``ends`` that agree with ``start`` at its visible positions."""
    return ends[((start == MASK) | (start == ends)).all(-1)]


@dataclass(frozen=True)
class Outcomes:
    """All ``n`` outcomes of one state, its ``g`` completions and their ``c`` corruptions."""

    z_tau: Tensor  # n l
    x: Tensor  # n g l
    z_t: Tensor  # n g c l

    def scores(self, table, *, revealed_only):
        """Scores of both moves; the second is computed by the function under test."""
        start = torch.full_like(self.z_tau, MASK)
        first = transition_log_probs(table, start, self.z_tau).sum(-1)
        log_probs = transition_log_probs(table, self.z_tau[:, None].expand_as(self.x), self.x)
        return first, second_move_score(log_probs, self.z_tau == MASK, self.z_t == MASK, revealed_only=revealed_only)

    def probs(self, table, alpha_tau, alpha_t):
        """Probability of each outcome, without gradient."""
        masked_tau = self.z_tau == MASK
        first, _ = self.scores(table, revealed_only=False)
        completion = transition_log_probs(table, self.z_tau[:, None].expand_as(self.x), self.x).sum((1, 2))
        patterns = torch.where(masked_tau, 1 - alpha_tau, alpha_tau).prod(-1)
        corruptions = torch.where(self.z_t == MASK, 1 - alpha_t, alpha_t).prod(-1).prod(-1).prod(-1)
        return ((first + completion).exp() * patterns * corruptions).detach()


def enumerate_outcomes(num_completions=1, num_corruptions=1):
    cases = []
    for z_tau in STATES:
        completed = []
        for x in reachable(z_tau, CLEAN):
            corrupted = [z for z in STATES if ((z == MASK) | (z == x)).all()]
            completed += [(x, torch.stack(z_t)) for z_t in itertools.product(corrupted, repeat=num_corruptions)]
        for completions in itertools.product(completed, repeat=num_completions):
            cases.append((z_tau, torch.stack([x for x, _ in completions]), torch.stack([z for _, z in completions])))
    return Outcomes(*map(torch.stack, zip(*cases, strict=True)))


SINGLE, PAIRS = (enumerate_outcomes(num_completions=num) for num in (1, 2))
TWICE_CORRUPTED = enumerate_outcomes(num_corruptions=2)


def student_marginal(table, alpha_tau, alpha_t):
    """Distribution of z_t when the student generates through z_tau, [9]; differentiable."""
    first = transition_log_probs(table, torch.full_like(STATES, MASK), STATES).sum(-1).exp()
    patterns = torch.where(STATES == MASK, 1 - alpha_tau, alpha_tau).prod(-1)
    pairs = STATES[:, None].expand(-1, 4, -1), CLEAN.expand(9, -1, -1)
    is_reachable = ((pairs[0] == MASK) | (pairs[0] == pairs[1])).all(-1)
    second = transition_log_probs(table, *pairs).sum(-1).exp() * is_reachable
    return (first * patterns) @ second @ corruption_kernel(alpha_t)


def log_ratio(table, alpha_tau, alpha_t):
    """log q_student - log q_teacher of each state."""
    return (student_marginal(table, alpha_tau, alpha_t) / (TEACHER.exp() @ corruption_kernel(alpha_t))).log()


def kl(table, alpha_tau, alpha_t):
    return (student_marginal(table, alpha_tau, alpha_t) * log_ratio(table, alpha_tau, alpha_t)).sum()


def finite_differences(function, step=1e-5):
    """Gradient at STUDENT by central differences; rounding 1e-16 / step and curvature step^2 stay below 1e-9."""
    shifts = step * torch.eye(STUDENT.numel(), dtype=torch.float64).view(-1, *STUDENT.shape)
    differences = [function(STUDENT + shift) - function(STUDENT - shift) for shift in shifts]
    return torch.stack(differences).view_as(STUDENT) / (2 * step)


@functools.cache
def gradient_of_kl(alpha_tau, alpha_t):
    return finite_differences(lambda table: kl(table, alpha_tau, alpha_t))


def expected_gradient(outcomes, advantage, alpha_tau, alpha_t, *, revealed_only=False, weight=1.0):
    """Exact expectation of the gradient of ``policy_loss`` over ``outcomes``, given their advantages."""
    table = STUDENT.clone().requires_grad_(True)
    first, second = outcomes.scores(table, revealed_only=revealed_only)
    loss = policy_loss(first, second, advantage, torch.full_like(first, weight))
    (gradient,) = torch.autograd.grad((outcomes.probs(table, alpha_tau, alpha_t) * loss).sum(), table)
    return gradient


def rewards_of(outcomes, alpha_tau, alpha_t):
    return log_ratio(STUDENT, alpha_tau, alpha_t)[state_index(outcomes.z_t)]


def raw(rewards):
    """Rewards as advantages, without a baseline."""
    return Advantages(rewards, rewards)


ALPHAS = {
    rates: torch.tensor(rates, dtype=torch.float64).unbind()
    for rates in ((0.5, 0.5), (0.2, 0.2), (0.85, 0.85), (0.3, 0.8), (0.0, 0.4))
}


@pytest.fixture(params=ALPHAS, ids=str)
def alphas(request):
    """Signal rates at tau and t: coupled times, uncoupled ones, and the one-step generator (tau = 1)."""
    return ALPHAS[request.param]


# The enumeration itself is in float64: only finite differences limit these. Gradients are of size 0.05.
EXACT = {"rtol": 0, "atol": 1e-8}
# ``advantages`` works in float32.
SINGLE_PRECISION = {"rtol": 0, "atol": 1e-6}


@pytest.mark.parametrize("outcomes", [SINGLE, PAIRS, TWICE_CORRUPTED], ids=["single", "pairs", "twice corrupted"])
def test_the_enumeration_is_complete(outcomes, alphas):
    probs = outcomes.probs(STUDENT, *alphas)
    assert probs.sum() == pytest.approx(1, rel=1e-12)
    for number in range(outcomes.z_t.shape[1]):
        marginal = torch.zeros(9, dtype=torch.float64).index_add(0, state_index(outcomes.z_t[:, number, -1]), probs)
        torch.testing.assert_close(marginal, student_marginal(STUDENT, *alphas))


@pytest.mark.parametrize("revealed_only", [False, True], ids=["full score", "reduction A"])
@pytest.mark.parametrize("outcomes", [SINGLE, PAIRS, TWICE_CORRUPTED], ids=["single", "two completions", "reduction C"])
def test_the_split_score_with_the_raw_reward_is_the_gradient_of_the_kl(outcomes, revealed_only, alphas):
    gradient = expected_gradient(
        outcomes, raw(rewards_of(outcomes, *alphas)), *alphas, revealed_only=revealed_only, weight=1.7
    )
    expected = 1.7 * gradient_of_kl(*alphas)
    assert expected.abs().max() > 0.02
    torch.testing.assert_close(gradient, expected, **EXACT)


@pytest.mark.parametrize("alphas", [(0.5, 0.5), (0.3, 0.8)], ids=str, indirect=True)
def test_the_first_move_needs_all_its_terms(alphas):
    # Reduction A would be wrong for the first move: all its tokens affect the second move, also those masked in z_t.
    table = STUDENT.clone().requires_grad_(True)
    first = transition_log_probs(table, torch.full_like(SINGLE.z_tau, MASK), SINGLE.z_tau)
    first = torch.where(SINGLE.z_t[:, 0, 0] == MASK, 0.0, first).sum(-1)
    _, second = SINGLE.scores(table, revealed_only=True)
    loss = policy_loss(first, second, raw(rewards_of(SINGLE, *alphas)), torch.ones(len(first)))
    (gradient,) = torch.autograd.grad((SINGLE.probs(table, *alphas) * loss).sum(), table)
    difference = gradient - gradient_of_kl(*alphas)
    assert difference.abs().max() > 1e-4


def advantages_of_two_states(outcomes, alpha_tau, alpha_t, grouping):
    """``advantages`` of the first of two states for every joint outcome [i, j]: [n, n, g, c]."""
    rewards = rewards_of(outcomes, alpha_tau, alpha_t)
    joint = torch.stack(
        [rewards[:, None].expand(-1, len(rewards), -1, -1), rewards.expand(len(rewards), -1, -1, -1)], dim=2
    )
    by_outcome = torch.vmap(lambda batch: advantages(batch, grouping=grouping, normalise=False))(joint.flatten(0, 1))
    return Advantages(*(part[:, 0].unflatten(0, joint.shape[:2]).double() for part in by_outcome))


def mean_over_second_state(joint, outcomes, alpha_tau, alpha_t):
    """Expectation of the advantages of the first state over the outcomes of the second."""
    probs = outcomes.probs(STUDENT, alpha_tau, alpha_t)
    return Advantages(*(torch.einsum("j,ijgc->igc", probs, part) for part in joint))


@pytest.mark.parametrize("revealed_only", [False, True], ids=["full score", "reduction A"])
@pytest.mark.parametrize(
    ("grouping", "outcomes", "share"),
    [
        ("shared-state", PAIRS, 1.0),
        ("leave-one-out", SINGLE, 1.0),
        # The mean of a batch of n contains the sample itself, which scales the gradient by (n - 1) / n.
        ("batch", SINGLE, 0.5),
    ],
    ids=["reduction B", "leave-one-out", "batch"],
)
@pytest.mark.parametrize("alphas", [(0.5, 0.5), (0.3, 0.8)], ids=str, indirect=True)
def test_baselines_do_not_change_the_expected_gradient(grouping, outcomes, share, revealed_only, alphas):
    # The states of a batch are exchangeable: the expectation of the mean is that of the first state.
    advantage = mean_over_second_state(advantages_of_two_states(outcomes, *alphas, grouping), outcomes, *alphas)
    gradient = expected_gradient(outcomes, advantage, *alphas, revealed_only=revealed_only)
    expected = share * gradient_of_kl(*alphas)
    torch.testing.assert_close(gradient, expected, **SINGLE_PRECISION)


@pytest.mark.slow
@pytest.mark.parametrize("importance_weighting", [True, False])
def test_over_times_the_gradient_is_that_of_the_integral_kl(importance_weighting):
    # Gauss-Legendre in t, with t drawn from pi = Beta(2, 5); the same quadrature on both sides.
    nodes, shares = (torch.from_numpy(values) / 2 for values in np.polynomial.legendre.leggauss(5))
    t = 0.5 + nodes
    schedule, density = LogLinear(), TimeDensity(2.0, 5.0).density(t)
    omega = time_weight("nelbo", schedule, t, low=0.1, high=10.0)
    alpha = schedule.alpha(t)
    weight = omega / density if importance_weighting else omega
    gradient = sum(
        share * pi * expected_gradient(SINGLE, raw(rewards_of(SINGLE, a, a)), a, a, revealed_only=True, weight=float(w))
        for share, pi, a, w in zip(shares, density, alpha, weight, strict=True)
    )
    effective = omega if importance_weighting else omega * density

    def integral_kl(table):
        return sum(share * w * kl(table, a, a) for share, w, a in zip(shares, effective, alpha, strict=True))

    torch.testing.assert_close(gradient, finite_differences(integral_kl), rtol=0, atol=1e-7)


# Exact variances: the trace of the covariance of the gradient.


def gradients(outcomes, advantage, *, revealed_only):
    """Gradient of ``policy_loss`` in each case, [n, parameters]."""
    table = STUDENT.clone().requires_grad_(True)
    first, second = outcomes.scores(table, revealed_only=revealed_only)
    losses = policy_loss(first, second, advantage, torch.ones_like(first))
    (rows,) = torch.autograd.grad(losses, table, torch.eye(len(losses), dtype=losses.dtype), is_grads_batched=True)
    return rows.flatten(1)


def variance(probs, rows):
    mean = probs @ rows
    return float(probs @ (rows - mean).square().sum(1))


def variance_of_single_states(outcomes, alphas, *, revealed_only):
    rows = gradients(outcomes, raw(rewards_of(outcomes, *alphas)), revealed_only=revealed_only)
    return variance(outcomes.probs(STUDENT, *alphas), rows)


def variance_of_two_states(outcomes, alphas, grouping, *, revealed_only):
    """Variance of the mean over two states, whose advantages depend on each other."""
    probs = outcomes.probs(STUDENT, *alphas)
    joint = advantages_of_two_states(outcomes, *alphas, grouping)
    zero, unit = torch.zeros_like(joint.first[0]), torch.ones_like(joint.first[0])
    first = gradients(outcomes, Advantages(unit, zero), revealed_only=revealed_only)
    contributions = joint.first.mean((2, 3))[..., None] * first[:, None]
    for number in range(unit.shape[1]):
        only = zero.clone()
        only[:, number] = 1
        second = gradients(outcomes, Advantages(zero, only), revealed_only=revealed_only)
        contributions += joint.second[:, :, number] * second[:, None]
    # The contribution of the second state in outcome [i, j] is that of the first in [j, i].
    both = (contributions + contributions.transpose(0, 1)) / 2
    return variance((probs[:, None] * probs).flatten(), both.flatten(0, 1))


def test_reductions_a_and_c_lower_the_variance(alphas):
    plain = variance_of_single_states(SINGLE, alphas, revealed_only=False)
    revealed = variance_of_single_states(SINGLE, alphas, revealed_only=True)
    twice = [
        variance_of_single_states(TWICE_CORRUPTED, alphas, revealed_only=revealed_only)
        for revealed_only in (False, True)
    ]
    assert max(revealed / plain, twice[0] / plain, twice[1] / revealed) < 0.99


@pytest.mark.parametrize("alphas", [pytest.param((0.5, 0.5), marks=pytest.mark.slow)], ids=str, indirect=True)
def test_reduction_b_lowers_the_variance_for_the_same_student_passes(alphas):
    # Two states a batch in both; a second completion costs no pass of the student.
    alone = variance_of_two_states(SINGLE, alphas, "leave-one-out", revealed_only=True)
    shared = variance_of_two_states(PAIRS, alphas, "shared-state", revealed_only=True)
    assert shared < 0.7 * alone
