"""With a reference, the policy gradient is that of an upper bound, which is tight if the reference is the student."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.evaluation.exact.sampler import after_move, reveal_probabilities, sampler_distribution, successor_probs
from didi.evaluation.exact.states import States
from didi.methods.didi_settings import ObjectiveConfig
from didi.methods.reference import Reference
from didi.methods.rollout import rollout
from didi.objectives.didi import advantages, policy_loss, second_move_score
from didi.sampling.base import path_alphas

from .gradients import assert_mean_is, flat_gradient

NUM_SYMBOLS, LENGTH, NUM_MOVES = 3, 3, 2
PROCESS = Absorbing(NUM_SYMBOLS)
STATES = States(NUM_SYMBOLS, LENGTH)
ALPHAS = path_alphas(PROCESS.schedule, torch.linspace(1, 0, NUM_MOVES + 1, dtype=torch.float64))
LOG_Q = torch.randn(NUM_SYMBOLS**LENGTH, generator=torch.Generator().manual_seed(0)).double().log_softmax(0)
WHOLE = {"trajectory": "whole-path", "moves": NUM_MOVES, "divergence_weight": 0.0, "entropy_weight": 0.0}
BRANCHES = {"completions": 3, "advantage": "shared-state"}


@pytest.fixture(scope="module")
def networks(make_dit_of_states):
    """Student and reference, whose predictions depend strongly on visible tokens."""
    return [make_dit_of_states(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=seed, scale=1.5) for seed in (2, 3)]


def predictions(network):
    return network(STATES.tokens)[..., :NUM_SYMBOLS].double().softmax(-1)


def distribution(network):
    return sampler_distribution(STATES, ALPHAS, predictions(network))


def path_divergence(student, reference):
    """KL divergence of the distributions of paths: expected sum over moves of that of the revealed tokens."""
    of_student, of_reference = predictions(student), predictions(reference)
    mass, total = STATES.all_masked(), 0.0
    is_masked = STATES.tokens == NUM_SYMBOLS
    for chance in reveal_probabilities(ALPHAS):
        token_kl = (of_student * (of_student.log() - of_reference.log())).sum(-1)
        total = total + chance * (mass * torch.where(is_masked, token_kl, 0.0).sum(-1)).sum()
        mass = after_move(STATES, mass, successor_probs(STATES, chance, STATES.by_pattern(of_student)))
    return total


def bound(student, reference):
    """KL(p(path) || r(path | x) q(x)) of the student p and the reference r."""
    log_ratio = distribution(reference).log().detach() - LOG_Q
    return path_divergence(student, reference) + (distribution(student) * log_ratio).sum()


def drawn(student, name, num_samples=1000, **settings):
    objective = ObjectiveConfig(**WHOLE | {"advantage": "leave-one-out"} | settings)
    generator = named_generator("reference", name)
    return rollout(student, PROCESS, num_samples, LENGTH, objective, generator, torch.device("cpu"))


def reference_of(network):
    return Reference(network, PROCESS, ObjectiveConfig(**WHOLE, reference_steps=2))


def policy_gradient(student, reference, batch, grouping):
    """Policy gradient; the rewards are log r(x) / q(x), exact, plus log-ratios of paths of student and reference."""
    log_ratio = (distribution(reference).log().detach() - LOG_Q).float()
    index = (batch.x * NUM_SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)
    rewards = (log_ratio[index] + reference_of(reference).log_ratio(batch))[..., None]
    is_masked = batch.z_tau == NUM_SYMBOLS
    second = second_move_score(batch.completion_log_probs, is_masked, batch.z_t == NUM_SYMBOLS, revealed_only=False)
    advantage = advantages(rewards, grouping=grouping, normalise=False)
    return flat_gradient(policy_loss(batch.first_score, second, advantage, torch.ones(len(is_masked))).mean(), student)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, BRANCHES], ids=["plain", "branches"])
def test_the_policy_gradient_is_that_of_the_bound(networks, settings):
    student, reference = networks
    exact = flat_gradient(bound(student, reference), student)
    batches = [drawn(student, number, **settings) for number in range(30)]
    grouping = settings.get("advantage", "leave-one-out")
    estimates = [policy_gradient(student, reference, batch, grouping) for batch in batches]
    assert_mean_is(exact, estimates, max_error=0.03, min_cosine=0.97)


def test_the_bound_is_tight_if_student_and_reference_are_equal(networks):
    student, other = networks
    p = distribution(student)
    divergence = (p * (p.log() - LOG_Q)).sum()
    torch.testing.assert_close(bound(student, student), divergence)
    fixed = reference_of(student).network.requires_grad_(requires_grad=False)
    torch.testing.assert_close(
        flat_gradient(bound(student, fixed), student), flat_gradient(divergence, student), atol=1e-6, rtol=1e-4
    )
    assert bound(student, other) > divergence + 0.1


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, BRANCHES], ids=["plain", "branches"])
def test_log_ratios_of_paths_are_zero_for_a_reference_equal_to_the_student(networks, settings):
    student, other = networks
    batch = drawn(student, "same", **settings)
    same, different = reference_of(student).log_ratio(batch), reference_of(other).log_ratio(batch)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-5, rtol=0)
    expected = float(path_divergence(student, other))
    assert abs(different.mean() - expected) < 4 * different.std() / len(batch.x) ** 0.5
