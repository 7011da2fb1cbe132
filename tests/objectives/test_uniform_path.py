"""Whole paths of uniform-state diffusion: the policy gradient is that of the divergence of the ancestral sampler."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.uniform import Uniform
from didi.evaluation.exact.product import positionwise_distribution
from didi.methods.didi_settings import ObjectiveConfig
from didi.methods.reference import Reference
from didi.methods.rollout import rollout
from didi.methods.whole_path import path_log_probs
from didi.objectives.didi import advantages, policy_loss, second_move_score
from didi.sampling.base import path_alphas, time_grid
from didi.sampling.uniform_ancestral import UniformAncestral

from .gradients import assert_mean_is, flat_gradient

NUM_SYMBOLS, LENGTH = 3, 3
PROCESS = Uniform(NUM_SYMBOLS)
STATES = torch.cartesian_prod(*[torch.arange(NUM_SYMBOLS)] * LENGTH)
CHAIN = MarkovChain(NUM_SYMBOLS, successor_probs=(0.7, 0.2, 0.1))
LOG_Q = CHAIN.log_likelihood(STATES)
WHOLE = {"trajectory": "whole-path", "divergence_weight": 0.0, "entropy_weight": 0.0}
SHAPE = {"vocab_size": NUM_SYMBOLS, "length": LENGTH, "mask_id": None, "is_time_conditioned": True, "scale": 0.8}
BRANCHES = {"completions": 3, "advantage": "shared-state"}


@pytest.fixture(scope="module")
def networks(make_dit_of_states):
    """Student and reference, whose predictions depend on the state and the time."""
    return [make_dit_of_states(seed=seed, **SHAPE) for seed in (2, 3)]


def transitions(network, num_moves, process=PROCESS):
    """Probabilities of the tokens of each position after each move, from every state; by Bayes' rule, with gradient."""
    tables = []
    for t, s in pairwise(time_grid(num_moves)):
        t, s = t.expand(len(STATES)), s.expand(len(STATES))
        log_probs = process.log_probs(network(STATES, process.noise_level(network, t))).double()
        tables.append(process.posterior(STATES, log_probs, t, s))
    return tables


def joint(probs):
    """Probabilities of all sequences of independent positions, ``[n, c]``."""
    sequence_probs = probs.new_ones(len(probs), 1)
    for position in range(LENGTH):
        sequence_probs = (sequence_probs[:, :, None] * probs[:, position, None]).flatten(1)
    return sequence_probs


def exact_distribution(network, num_moves):
    """Distribution of the sampler, with the gradient of the network."""
    mass = torch.full((len(STATES),), 1 / len(STATES), dtype=torch.float64)
    for probs in transitions(network, num_moves):
        mass = mass @ joint(probs)
    return mass


def draw(student, num_moves, name, num_samples=8000, process=PROCESS, **settings):
    objective = ObjectiveConfig(**WHOLE | {"advantage": "leave-one-out"} | settings, moves=num_moves)
    generator = named_generator("uniform path", name)
    return rollout(student, process, num_samples, LENGTH, objective, generator, torch.device("cpu"))


def branches(student, num_moves, branch, name=0, num_samples=1000, process=PROCESS):
    """Paths that branch after ``branch`` moves, from the first seed that draws this number."""
    seeds = range(1000 * name, 1000 * name + 100)
    first = {seed: int(torch.randint(num_moves, (), generator=named_generator("uniform path", seed))) for seed in seeds}
    seed = next(seed for seed in seeds if first[seed] == branch)
    return draw(student, num_moves, seed, num_samples, process, **BRANCHES)


def index_of(x):
    return (x * NUM_SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("num_moves", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
def test_samples_follow_the_distribution_of_the_sampler(networks, chi_square, num_moves):
    student = networks[0]
    exact = exact_distribution(student, num_moves)
    times = time_grid(num_moves)
    torch.testing.assert_close(
        positionwise_distribution(UniformAncestral(student, PROCESS), NUM_SYMBOLS, LENGTH, times), exact
    )
    batch = draw(student, num_moves, 0, 80_000)
    assert chi_square(index_of(batch.x[:, 0]), exact) > 1e-3
    assert torch.equal(batch.z_t[:, 0, 0], batch.x[:, 0])  # rewards are those of finished samples
    assert torch.equal(batch.z_tau, batch.x[:, 0])
    assert not batch.t.any()
    assert chi_square(index_of(batch.record[:, 0, 0]), torch.ones(len(STATES))) > 1e-3  # from uniform noise


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["log-linear", "log-linear-eps", "cosine", "geometric"])
@pytest.mark.parametrize("branch", [None, 0, 2])
def test_the_score_of_a_path_is_that_of_every_token_of_every_move(networks, schedule, branch):
    student, other = networks
    process = replace(PROCESS, schedule=schedule_from_name(schedule))
    plain = branch is None
    batch = draw(student, 3, "score", 50, process) if plain else branches(student, 3, branch, 0, 50, process)
    states, times = batch.record, time_grid(3)
    alphas = path_alphas(process.schedule, times).tolist()
    for network in (student, other):
        expected = torch.zeros(batch.x.shape[:2], dtype=torch.float64)
        for move, position in product(range(3), range(LENGTH)):
            z, moved = states[:, :, move].flatten(0, 1), states[:, :, move + 1, :, None].flatten(0, 1)
            logits = network(z, process.noise_level(network, times[move].expand(len(z))))[:, position]
            weights = process.reverse_weights(logits, z[:, position], alphas[move], alphas[move + 1])
            probs = weights / weights.sum(-1, keepdim=True)
            expected += probs.gather(1, moved[:, position]).log().view(expected.shape)
        log_probs = path_log_probs(network, process, batch.x, states, 3, batch.canvas)
        torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=1e-5)
        if network is student:
            total = batch.first_score[:, None] + batch.completion_log_probs.sum(-1)
            torch.testing.assert_close(total, log_probs, atol=1e-5, rtol=1e-5)
    assert torch.equal(states[:, :, -1], batch.x)
    assert batch.first_score.dtype == batch.completion_log_probs.dtype == torch.float64


def log_ratio_and_exact_gradient(student, num_moves):
    """Exact reward of every sample, and the gradient of the divergence."""
    p = exact_distribution(student, num_moves)
    log_ratio = p.log() - LOG_Q
    return log_ratio.detach().float(), flat_gradient((p * log_ratio).sum(), student)


def policy_gradient(student, batch, rewards, grouping):
    """Policy gradient of a batch, given its rewards."""
    advantage = advantages(rewards[..., None], grouping=grouping, normalise=False)
    is_predicted = (PROCESS.is_predicted(z) for z in (batch.z_tau, batch.z_t))
    second = second_move_score(batch.completion_log_probs, *is_predicted, revealed_only=False)
    return flat_gradient(policy_loss(batch.first_score, second, advantage, torch.ones(len(batch.x))).mean(), student)


@pytest.mark.parametrize("num_moves", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_policy_gradient_is_that_of_the_exact_divergence(networks, num_moves):
    student = networks[0]
    log_ratio, exact = log_ratio_and_exact_gradient(student, num_moves)
    batches = [draw(student, num_moves, number + 1, num_samples=1000) for number in range(20)]
    estimates = [policy_gradient(student, batch, log_ratio[index_of(batch.x)], "leave-one-out") for batch in batches]
    assert_mean_is(exact, estimates, max_error=0.05)


@pytest.mark.parametrize("num_moves", [2, 4])
def test_the_exact_gradient_is_that_of_finite_differences(make_dit, num_moves):
    """Checks the exact gradient of the tests above, along its direction."""
    student = make_dit(seed=2, **SHAPE)
    gradient = log_ratio_and_exact_gradient(student, num_moves)[1]
    parameters = list(student.parameters())

    def divergence(step):
        with torch.no_grad():
            offset = 0
            original = [weight.clone() for weight in parameters]
            for weight in parameters:
                weight.add_(step * gradient[offset : offset + weight.numel()].view(weight.shape) / gradient.norm())
                offset += weight.numel()
            p = exact_distribution(student, num_moves)
            for weight, value in zip(parameters, original, strict=True):
                weight.copy_(value)
            return float((p * (p.log() - LOG_Q)).sum())

    slope = (divergence(0.01) - divergence(-0.01)) / 0.02
    assert slope == pytest.approx(float(gradient.norm()), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("branch", range(3))
def test_with_branches_the_policy_gradient_is_the_same(networks, branch):
    student = networks[0]
    log_ratio, exact = log_ratio_and_exact_gradient(student, 3)
    batches = [branches(student, 3, branch, name) for name in range(20)]
    estimates = [policy_gradient(student, batch, log_ratio[index_of(batch.x)], "shared-state") for batch in batches]
    assert_mean_is(exact, estimates, max_error=0.06)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("branch", range(3))
def test_completions_are_independent_given_the_state_where_they_branch(networks, chi_square, branch):
    student = networks[0]
    batch = branches(student, 3, branch, num_samples=40_000)
    assert batch.tau[0] == 1 - torch.tensor(branch, dtype=torch.float64) / 3
    assert torch.equal(batch.record[:, 0, branch], batch.z_tau)
    assert torch.equal(batch.record[:, 0, : branch + 1], batch.record[:, 2, : branch + 1])
    assert torch.equal(batch.first_score != 0, torch.full((40_000,), branch > 0))
    mass, ends = torch.full((len(STATES),), 1 / len(STATES)).double(), torch.eye(len(STATES)).double()
    for number, probs in enumerate(transitions(student, 3)):
        if number < branch:
            mass = mass @ joint(probs)
        else:
            ends = ends @ joint(probs)
    pairs = (mass[:, None] * ends).T @ ends
    is_common = pairs.flatten() > 5 / 40_000
    group = is_common * is_common.cumsum(0)  # the rare pairs are counted together
    expected = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, pairs.flatten())
    for pair in ([0, 1], [1, 2]):
        first, second = index_of(batch.x[:, pair]).T
        assert chi_square(group[first * len(pairs) + second], expected) > 1e-3


def path_divergence(student, reference, num_moves):
    """KL divergence of the distributions of paths: the sum over moves, in expectation over the student's states."""
    mass, total = torch.full((len(STATES),), 1 / len(STATES)).double(), 0.0
    for p, r in zip(transitions(student, num_moves), transitions(reference, num_moves), strict=True):
        total = total + (mass * (p * (p.log() - r.log())).sum((1, 2))).sum()
        mass = mass @ joint(p)
    return total


def reference_of(network, num_moves):
    return Reference(network, PROCESS, ObjectiveConfig(**WHOLE, moves=num_moves, reference_steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, BRANCHES], ids=["plain", "branches"])
def test_with_a_reference_the_policy_gradient_is_that_of_the_bound(networks, settings):
    student, reference = networks
    log_ratio = (exact_distribution(reference, 2).log() - LOG_Q).detach()
    bound = path_divergence(student, reference, 2) + (exact_distribution(student, 2) * log_ratio).sum()
    exact, fixed = flat_gradient(bound, student), reference_of(reference, 2)
    grouping, estimates = settings.get("advantage", "leave-one-out"), []
    for number in range(30):
        batch = draw(student, 2, number, 1000, **settings)
        rewards = log_ratio[index_of(batch.x)] + fixed.log_ratio(batch)
        estimates.append(policy_gradient(student, batch, rewards, grouping))
    assert_mean_is(exact, estimates, max_error=0.05)


@pytest.mark.slow
@torch.no_grad()
def test_log_ratios_are_0_if_the_reference_is_the_student_and_else_average_to_the_divergence_of_paths(networks):
    student, other = networks
    batch = draw(student, 3, "ratio")
    same, different = (reference_of(network, 3).log_ratio(batch) for network in (student, other))
    assert same.abs().max() < 1e-5
    assert abs(different.mean() - path_divergence(student, other, 3)) < 4 * different.std() / len(different) ** 0.5
