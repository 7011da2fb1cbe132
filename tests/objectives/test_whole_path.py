"""The policy gradient of a whole path is that of the divergence of the sampler, by enumeration."""

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.evaluation.exact.sampler import after_move, reveal_probabilities, sampler_distribution, successor_probs
from didi.evaluation.exact.states import States
from didi.methods.didi_settings import ObjectiveConfig
from didi.methods.rollout import rollout
from didi.objectives.didi import advantages, policy_loss, second_move_score
from didi.sampling.base import path_alphas

from .gradients import assert_mean_is, flat_gradient

NUM_SYMBOLS, LENGTH = 3, 3
PROCESS = Absorbing(NUM_SYMBOLS)
STATES = States(NUM_SYMBOLS, LENGTH)
CHAIN = MarkovChain(NUM_SYMBOLS, successor_probs=(0.7, 0.2, 0.1))


@pytest.fixture(scope="module")
def student(make_dit_of_states):
    return make_dit_of_states(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=2)


def exact_distribution(student, num_moves):
    """Distribution of the sampler, with the gradient of the student."""
    predictions = student(STATES.tokens)[..., :NUM_SYMBOLS].double().softmax(-1)
    times = torch.linspace(1, 0, num_moves + 1, dtype=torch.float64)
    return sampler_distribution(STATES, path_alphas(PROCESS.schedule, times), predictions)


def draw(student, num_moves, name, num_samples=8000, **settings):
    objective = ObjectiveConfig(
        trajectory="whole-path", moves=num_moves, divergence_weight=0.0, entropy_weight=0.0, **settings
    )
    generator = named_generator("whole path", name)
    return rollout(student, PROCESS, num_samples, LENGTH, objective, generator, torch.device("cpu"))


def index_of(x):
    return (x * NUM_SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("num_moves", [1, 2, 5])
def test_samples_follow_the_distribution_of_the_sampler(student, chi_square, num_moves):
    batch = draw(student, num_moves, 0)
    assert chi_square(index_of(batch.x[:, 0]), exact_distribution(student, num_moves)) > 1e-3
    assert torch.equal(batch.z_t[:, 0, 0], batch.x[:, 0])  # rewards are those of finished samples
    assert not batch.t.any()


def log_ratio_and_exact_gradient(student, num_moves):
    """Exact reward of every sample, and the gradient of the divergence."""
    p = exact_distribution(student, num_moves)
    log_ratio = p.log() - CHAIN.log_likelihood(STATES.clean)
    return log_ratio.detach().float(), flat_gradient((p * log_ratio).sum(), student)


def policy_gradient(student, batch, log_ratio, grouping):
    """Policy gradient of a batch, with exact rewards."""
    advantage = advantages(log_ratio[index_of(batch.x)][..., None], grouping=grouping, normalise=False)
    is_masked = batch.z_tau == NUM_SYMBOLS
    second = second_move_score(batch.completion_log_probs, is_masked, batch.z_t == NUM_SYMBOLS, revealed_only=False)
    return flat_gradient(policy_loss(batch.first_score, second, advantage, torch.ones(len(is_masked))).mean(), student)


@pytest.mark.parametrize("num_moves", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_policy_gradient_is_that_of_the_exact_divergence(student, num_moves):
    log_ratio, exact = log_ratio_and_exact_gradient(student, num_moves)
    batches = [draw(student, num_moves, number + 1, num_samples=1000) for number in range(20)]
    estimates = [policy_gradient(student, batch, log_ratio, "leave-one-out") for batch in batches]
    assert_mean_is(exact, estimates, max_error=0.05)


@torch.no_grad()
@pytest.mark.parametrize("reward_time", ["density", "both"])
def test_rewards_may_be_those_of_corrupted_samples(student, reward_time):
    batch = draw(student, 2, 0, reward_time=reward_time)
    is_masked = batch.z_t[:, 0, 0] == NUM_SYMBOLS
    assert torch.equal(batch.z_t[:, 0, 0][~is_masked], batch.x[:, 0][~is_masked])
    first, second = (is_masked[half::2].double().mean() for half in (0, 1))
    assert abs(second - 0.5) < 0.03
    assert abs(first - (0.5 if reward_time == "density" else 0)) < 0.03
    assert (batch.x != NUM_SYMBOLS).all()


def branches(student, num_moves, branch, name=0, num_samples=8000, **settings):
    """Paths that branch after ``branch`` moves, from the first seed that draws this number."""
    settings = {"completions": 3, "advantage": "shared-state"} | settings
    seeds = range(1000 * name, 1000 * name + 100)
    first = {seed: int(torch.randint(num_moves, (), generator=named_generator("whole path", seed))) for seed in seeds}
    batch = draw(student, num_moves, next(s for s in seeds if first[s] == branch), num_samples, **settings)
    assert batch.tau[0] == 1 - branch / num_moves
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("branch", range(4))
def test_with_branches_the_policy_gradient_is_the_same(student, branch):
    log_ratio, exact = log_ratio_and_exact_gradient(student, 4)
    batches = [branches(student, 4, branch, name, num_samples=1000) for name in range(20)]
    estimates = [policy_gradient(student, batch, log_ratio, "shared-state") for batch in batches]
    assert_mean_is(exact, estimates, max_error=0.05)


@torch.no_grad()
def distribution_of_two_completions(student, num_moves, branch):
    """Probability of each pair of completions, which are independent given the state where they branch."""
    predictions = student(STATES.tokens)[..., :NUM_SYMBOLS].double().softmax(-1)
    times = torch.linspace(1, 0, num_moves + 1, dtype=torch.float64)
    chances, rows = reveal_probabilities(path_alphas(PROCESS.schedule, times)), STATES.by_pattern(predictions)

    def moved(mass, chances):
        for chance in chances:
            mass = after_move(STATES, mass, successor_probs(STATES, chance, rows))
        return mass

    states = torch.eye(len(STATES), dtype=torch.float64)
    ends = torch.stack([STATES.of_clean(moved(state, chances[branch:])) for state in states])
    return (moved(STATES.all_masked(), chances[:branch])[:, None] * ends).T @ ends


@torch.no_grad()
@pytest.mark.parametrize(
    ("num_moves", "branch"), [(1, 0), (2, 1), *(pytest.param(4, branch, marks=pytest.mark.slow) for branch in range(4))]
)
def test_completions_are_independent_given_the_state_where_they_branch(
    make_dit_of_states, chi_square, num_moves, branch
):
    # With this scale predictions depend strongly on visible tokens.
    student = make_dit_of_states(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=5, scale=2.0)
    batch = branches(student, num_moves, branch, num_samples=40_000)
    joint = distribution_of_two_completions(student, num_moves, branch)
    torch.testing.assert_close(joint.sum(1), exact_distribution(student, num_moves))
    is_common = joint.flatten() > 5 / 40_000
    group = is_common * is_common.cumsum(0)  # the rare pairs are counted together
    expected = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, joint.flatten())
    for pair in ([0, 1], [1, 2], [2, 0]):
        first, second = index_of(batch.x[:, pair]).T
        assert chi_square(group[first * len(joint) + second], expected) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("branch", range(4))
def test_the_moves_up_to_the_branch_are_shared(student, branch):
    batch = branches(student, 4, branch)
    is_masked = (batch.z_tau == NUM_SYMBOLS)[:, None].expand_as(batch.x)
    assert abs(is_masked.double().mean() - (1 - branch / 4)) < 0.015
    assert torch.equal(batch.x[~is_masked], batch.z_tau[:, None].expand_as(batch.x)[~is_masked])
    assert not batch.completion_log_probs[~is_masked].any()
    assert (batch.completion_log_probs[is_masked] < 0).all()
    assert torch.equal(batch.first_score < 0, ~is_masked[:, 0].all(1))
    assert torch.equal(batch.z_t[:, :, 0], batch.x)


@pytest.mark.slow
def test_all_branches_are_equally_frequent(student):
    settings = {"completions": 2, "advantage": "shared-state"}
    drawn = [float(draw(student, 4, number, 2, **settings).tau[0]) for number in range(200)]
    for branch in range(4):
        assert abs(drawn.count(1 - branch / 4) - 50) < 25  # 4 standard errors
