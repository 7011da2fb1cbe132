"""The policy gradient of a whole path is that of the divergence of the sampler, in a world that can be enumerated."""

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.evaluation.exact.sampler import sampler_distribution
from didi.evaluation.exact.states import States
from didi.methods.didi_settings import ObjectiveConfig
from didi.methods.rollout import rollout
from didi.objectives.didi import advantages, policy_loss
from didi.sampling.base import path_alphas

NUM_SYMBOLS, LENGTH = 3, 3
PROCESS = Absorbing(NUM_SYMBOLS)
STATES = States(NUM_SYMBOLS, LENGTH)
CHAIN = MarkovChain(NUM_SYMBOLS, successor_probs=(0.7, 0.2, 0.1))


@pytest.fixture(scope="module")
def student(make_dit):
    return make_dit(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=2)


def exact_distribution(student, num_moves):
    """Of the sampler, with the gradient of the student."""
    predictions = student(STATES.tokens)[..., :NUM_SYMBOLS].double().softmax(-1)
    times = torch.linspace(1, 0, num_moves + 1, dtype=torch.float64)
    return sampler_distribution(STATES, path_alphas(PROCESS.schedule, times), predictions)


def flat_gradient(value, student):
    found = torch.autograd.grad(value, list(student.parameters()), allow_unused=True)
    return torch.cat([one.double().flatten() for one in found if one is not None])


def draw(student, num_moves, name, num_samples=8000, **settings):
    objective = ObjectiveConfig(
        trajectory="whole-path", moves=num_moves, divergence_weight=0.0, entropy_weight=0.0, **settings
    )
    generator = named_generator("whole path", name)
    return rollout(student, num_samples, LENGTH, objective, PROCESS, generator, torch.device("cpu"))


def index_of(x):
    return (x * NUM_SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("num_moves", [1, 2, 5])
def test_samples_follow_the_distribution_of_the_sampler(student, chi_square, num_moves):
    batch = draw(student, num_moves, 0)
    assert chi_square(index_of(batch.x[:, 0]), exact_distribution(student, num_moves)) > 1e-3
    assert torch.equal(batch.z_t[:, 0, 0], batch.x[:, 0])  # the finished sample is judged
    assert not batch.t.any()


@pytest.mark.parametrize("num_moves", [1, 2, 4])
def test_the_policy_gradient_is_that_of_the_exact_divergence(student, num_moves):
    p = exact_distribution(student, num_moves)
    log_q = CHAIN.log_likelihood(STATES.clean)
    exact = flat_gradient((p * (p.log() - log_q)).sum(), student)
    log_ratio = (p.detach().log() - log_q).float()
    along = []  # estimates of the gradient along the exact one, and of the error across
    found = torch.zeros_like(exact)
    for number in range(20):
        batch = draw(student, num_moves, number + 1, num_samples=1000)
        advantage = advantages(log_ratio[index_of(batch.x)][..., None], grouping="leave-one-out", normalise=False)
        ones = torch.ones(1000)
        loss = policy_loss(batch.first_score, torch.zeros(1000, 1, 1), advantage, ones).mean()
        gradient = flat_gradient(loss, student)
        found += gradient / 20
        along.append(float(gradient @ exact / (exact @ exact)))
    mean, error = torch.tensor(along).mean(), torch.tensor(along).std() / 20**0.5
    assert error < 0.05
    assert abs(mean - 1) < 4 * error
    assert torch.cosine_similarity(found, exact, dim=0) > 0.95


@torch.no_grad()
@pytest.mark.parametrize("reward_time", ["density", "both"])
def test_samples_may_be_judged_corrupted(student, reward_time):
    batch = draw(student, 2, 0, reward_time=reward_time)
    is_masked = batch.z_t[:, 0, 0] == NUM_SYMBOLS
    assert torch.equal(batch.z_t[:, 0, 0][~is_masked], batch.x[:, 0][~is_masked])
    first, second = (is_masked[half::2].double().mean() for half in (0, 1))
    assert abs(second - 0.5) < 0.03
    assert abs(first - (0.5 if reward_time == "density" else 0)) < 0.03
    assert (batch.x != NUM_SYMBOLS).all()
