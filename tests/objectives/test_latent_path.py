"""The policy gradient of a whole path with latent codes is that of the divergence of the mixture, by enumeration."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.exact.sampler import after_move, reveal_probabilities, successor_probs
from didi.evaluation.exact.states import States
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.reference import Reference
from didi.methods.rollout import rollout
from didi.objectives.didi import advantages, policy_loss, second_move_score
from didi.sampling.base import path_alphas, time_grid

from .gradients import assert_mean_is, flat_gradient

NUM_SYMBOLS, LENGTH, NUM_CODES = 3, 3, 2
PROCESS = Absorbing(NUM_SYMBOLS)
STATES = States(NUM_SYMBOLS, LENGTH)
CHAIN = MarkovChain(NUM_SYMBOLS, successor_probs=(0.7, 0.2, 0.1))
CODES = torch.tensor([*product(range(NUM_CODES), repeat=LENGTH)])
OBJECTIVE = ObjectiveConfig(
    trajectory="whole-path", moves=2, latent_codes=NUM_CODES, advantage="leave-one-out",
    divergence_weight=0.0, entropy_weight=0.0,
)  # fmt: skip
BRANCHED = replace(OBJECTIVE, completions=3, advantage="shared-state")


@pytest.fixture(scope="module")
def student(make_dit_of_states):
    return make_dit_of_states(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=2, num_codes=NUM_CODES)


def log_probs(network, z, codes):
    return network.head(network.features(z, None, None, codes))[..., :NUM_SYMBOLS].double().log_softmax(-1)


def exact_distribution(network, num_moves):
    """Distribution of the sampler, a sum over the codes of every move, with the gradient of the network."""
    tables = [log_probs(network, STATES.tokens, codes.expand(len(STATES), -1)).exp() for codes in CODES]
    mass = STATES.all_masked()
    for chance in reveal_probabilities(path_alphas(PROCESS.schedule, time_grid(num_moves))):
        chances = [successor_probs(STATES, chance, STATES.by_pattern(table)) for table in tables]
        moved = [after_move(STATES, mass, probs) for probs in chances]
        mass = torch.stack(moved).mean(0)
    return STATES.of_clean(mass)


def draw(network, objective, name, num_samples):
    generator = named_generator("latent path", name)
    return rollout(network, PROCESS, num_samples, LENGTH, objective, generator, torch.device("cpu"))


def index_of(x):
    return (x * NUM_SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("num_moves", [1, 2, 4])
def test_samples_follow_the_mixture(student, chi_square, num_moves):
    batch = draw(student, replace(OBJECTIVE, moves=num_moves), 0, 8000)
    assert chi_square(index_of(batch.x[:, 0]), exact_distribution(student, num_moves)) > 1e-3
    assert batch.first_log_probs is None  # paths have no common network input


@pytest.mark.parametrize(
    ("objective", "num_moves"),
    [
        (OBJECTIVE, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((OBJECTIVE, 2), (OBJECTIVE, 4), (BRANCHED, 2))),
    ],
    ids=["1", "2", "4", "branches"],
)
def test_the_policy_gradient_is_that_of_the_exact_divergence(student, objective, num_moves):
    objective = replace(objective, moves=num_moves)
    p = exact_distribution(student, num_moves)
    log_ratio = p.log() - CHAIN.log_likelihood(STATES.clean)
    exact, rewards = flat_gradient((p * log_ratio).sum(), student), log_ratio.detach().float()
    estimates = []
    for number in range(20):
        batch = draw(student, objective, number + 1, 1000)
        kind = objective.advantage
        advantage = advantages(rewards[index_of(batch.x)][..., None], grouping=kind, normalise=False)
        masks = batch.z_tau == NUM_SYMBOLS, batch.z_t == NUM_SYMBOLS
        second = second_move_score(batch.completion_log_probs, *masks, revealed_only=False)
        loss = policy_loss(batch.first_score, second, advantage, torch.ones(len(batch.x))).mean()
        estimates.append(flat_gradient(loss, student))
    assert_mean_is(exact, estimates, max_error=0.05)


def test_equal_codes_have_equal_gradients_and_different_codes_do_not(student, make_dit):
    equal_codes = make_dit(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=2, num_codes=NUM_CODES)
    with torch.no_grad():
        equal_codes.code_embed.embedding.zero_()

    def gradient_of_codes(network):
        p = exact_distribution(network, 2)
        kl = (p * (p.log() - CHAIN.log_likelihood(STATES.clean))).sum()
        return torch.autograd.grad(kl, network.code_embed.embedding)[0]

    first, second = gradient_of_codes(equal_codes)
    torch.testing.assert_close(first, second)
    first, second = gradient_of_codes(student)
    assert (first - second).norm() > 0.1 * first.norm()


@torch.no_grad()
def test_codes_are_uniform_and_independent_between_moves(student):
    codes = (draw(student, replace(OBJECTIVE, moves=3), 0, 4000).record[:, 0, 1:] * NUM_CODES).long()
    assert codes.shape == (4000, 3, LENGTH)
    together = (codes.flatten(1) * 2 ** torch.arange(3 * LENGTH)).sum(1)
    counts = torch.bincount(together, minlength=2 ** (3 * LENGTH)).double()
    expected = 4000 / len(counts)
    assert float(((counts - expected) ** 2 / expected).sum()) < len(counts) + 5 * (2 * len(counts)) ** 0.5


@torch.no_grad()
@pytest.mark.parametrize(("objective", "branch"), [(OBJECTIVE, 3), (BRANCHED, 0), (BRANCHED, 1), (BRANCHED, 2)])
def test_a_reference_scores_the_path_with_its_codes(student, make_dit, objective, branch):
    other = make_dit(vocab_size=NUM_SYMBOLS + 1, length=LENGTH, seed=3, num_codes=NUM_CODES)
    objective = replace(objective, moves=3)
    tau = torch.tensor(1 - branch / 3, dtype=torch.float64)
    # The first random stream whose paths branch after ``branch`` moves.
    names = (name for name in range(100) if torch.isclose(draw(student, objective, name, 2).tau[0], tau))
    batch = draw(student, objective, next(names), 50)
    reveal, *codes = batch.record.flatten(0, 1).unbind(1)
    x, alphas = batch.x.flatten(0, 1), path_alphas(PROCESS.schedule, time_grid(3))

    def score(network):
        total = torch.zeros(len(x), dtype=torch.float64)
        for move in range(3):
            is_masked, stays = reveal < 1 - alphas[move], reveal < 1 - alphas[move + 1]
            z = torch.where(is_masked, NUM_SYMBOLS, x)
            of_tokens = log_probs(network, z, (codes[move] * NUM_CODES).long()).gather(-1, x[..., None])[..., 0]
            total += torch.where(is_masked & ~stays, of_tokens, 0.0).sum(-1)
        return total.view(batch.x.shape[:2])

    recorded = batch.first_score[:, None] + batch.completion_log_probs.sum(-1)
    torch.testing.assert_close(recorded.double(), score(student), atol=1e-4, rtol=1e-4)
    log_ratio = Reference(other, PROCESS, replace(objective, reference_steps=2)).log_ratio(batch)
    torch.testing.assert_close(log_ratio.double(), score(student) - score(other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_codes": 1}, r"objective\.latent_codes is 2 or more, or 0 for none; got 1"),
        ({"latent_codes": -4}, r"objective\.latent_codes is 2 or more, or 0 for none; got -4"),
        ({"latent_codes": 0, "latent_scale": 2.0}, r"objective\.latent_scale is used with objective\.latent_codes"),
        ({"latent_scale": 0.0}, "latent_scale is positive; got 0.0"),
        ({"trajectory": "two-moves", "moves": None}, "latent_codes are for trajectory whole-path and initial_mask_rat"),
        ({"moves": 1, "initial_mask_ratio": 0.5}, "got 2 with whole-path and 0.5: change these, or set"),
    ],
)
def test_invalid_settings_of_latent_codes_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        ObjectiveConfig(**{**vars(OBJECTIVE), **changes})
