"""One-step students that start from random tokens: the policy gradient is that of the divergence of the mixture."""

from itertools import permutations, product

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.exact.states import States
from didi.methods.didi_settings import ObjectiveConfig
from didi.methods.reference import Reference
from didi.methods.rollout import rollout
from didi.objectives.didi import advantages, policy_loss, second_move_score

from .gradients import assert_mean_is, flat_gradient

NUM_SYMBOLS, LENGTH = 3, 3
PROCESS = Absorbing(NUM_SYMBOLS)
STATES = States(NUM_SYMBOLS, LENGTH)
CHAIN = MarkovChain(NUM_SYMBOLS, successor_probs=(0.7, 0.2, 0.1))
OBJECTIVE = ObjectiveConfig(
    trajectory="whole-path", moves=1, initial_mask_ratio=2 / 3, advantage="leave-one-out",
    divergence_weight=0.0, entropy_weight=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def student(make_dit):
    return make_dit(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=2)


def initial_states():
    """All states with two masks and one token; they are equally likely."""
    masks = sorted({*permutations((True, True, False))})
    return torch.tensor([[3 if m else token for m in mask] for mask, token in product(masks, range(NUM_SYMBOLS))])


def mixture(network):
    """Distribution of the samples, with the gradient of the network."""
    probs = network(initial_states())[..., :NUM_SYMBOLS].double().softmax(-1)
    chosen = probs[:, torch.arange(LENGTH), STATES.clean]  # of every state and clean sequence, position by position
    return chosen.prod(-1).mean(0)


def draw(network, name, num_samples):
    generator = named_generator("one step", name)
    return rollout(network, PROCESS, num_samples, LENGTH, OBJECTIVE, generator, torch.device("cpu"))


def index_of(x):
    return (x * NUM_SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


@torch.no_grad()
def test_samples_follow_the_mixture(student, chi_square):
    batch = draw(student, 0, 8000)
    assert chi_square(index_of(batch.x[:, 0]), mixture(student)) > 1e-3
    assert ((batch.record == NUM_SYMBOLS).sum(-1) == 2).all()


@pytest.mark.slow
def test_the_policy_gradient_is_that_of_the_exact_divergence(student):
    p = mixture(student)
    log_ratio = p.log() - CHAIN.log_likelihood(STATES.clean)
    exact, rewards = flat_gradient((p * log_ratio).sum(), student), log_ratio.detach().float()
    estimates = []
    for number in range(20):
        batch = draw(student, number + 1, 1000)
        advantage = advantages(rewards[index_of(batch.x)][..., None], grouping="leave-one-out", normalise=False)
        masks = batch.z_tau == NUM_SYMBOLS, batch.z_t == NUM_SYMBOLS
        second = second_move_score(batch.completion_log_probs, *masks, revealed_only=False)
        loss = policy_loss(batch.first_score, second, advantage, torch.ones(len(batch.x))).mean()
        estimates.append(flat_gradient(loss, student))
    assert_mean_is(exact, estimates, max_error=0.05)


@torch.no_grad()
def test_a_reference_scores_the_path_from_its_recorded_initial_state(student, make_dit):
    other = make_dit(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=3)
    batch = draw(student, 0, 50)
    objective = OBJECTIVE.__class__(**{**vars(OBJECTIVE), "reference_steps": 2})
    start, x = batch.record[:, 0], batch.x[:, 0]

    def score(network):
        log_probs = network(start)[..., :NUM_SYMBOLS].double().log_softmax(-1)
        return log_probs.gather(-1, x[..., None]).sum((1, 2))

    log_ratio = Reference(other, PROCESS, objective).log_ratio(batch)[:, 0]
    assert torch.allclose(log_ratio.double(), score(student) - score(other), atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"moves": 2}, {"completions": 2, "advantage": "shared-state"}, {"moves": None, "budgets": (1, 2)}]
)
def test_random_initial_tokens_need_a_single_move(changes):
    with pytest.raises(UsageError, match=r"initial_mask_ratio is below 1 for trajectory whole-path of moves 1"):
        ObjectiveConfig(**{**vars(OBJECTIVE), **changes})


@pytest.mark.parametrize("ratio", [0.0, 1.5, -1.0])
def test_an_initial_mask_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(UsageError, match=r"initial_mask_ratio lies in \(0, 1\]; got"):
        ObjectiveConfig(**{**vars(OBJECTIVE), "initial_mask_ratio": ratio})
