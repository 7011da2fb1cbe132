"""Di[M]O compared with sums over all samples, masks and initial states of 3 symbols and 2 positions.

With an optimal auxiliary model the expected gradient, given a state, is that of the divergence with respect to the
auxiliary model's logits. For a student with one initial state these are the student's logits.
"""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from didi.diffusion.categorical import divergence
from didi.errors import UsageError
from didi.objectives.dimo import auxiliary_losses, logit_gradient, mask_ratios, surrogate_loss

V, LENGTH, MASK = 3, 2, 3
CLEAN = list(itertools.product(range(V), repeat=LENGTH))
MASKS = [masks for masks in itertools.product([False, True], repeat=LENGTH) if any(masks)]
WEIGHTS = dict(zip(MASKS, [0.2, 0.3, 0.5], strict=True))
STATES = torch.tensor(list(itertools.product(range(V + 1), repeat=LENGTH)))
PRIOR = torch.tensor([0.3, 0.7], dtype=torch.float64)  # of two initial states
BETAS = [0.0, 1.0, 0.5, -0.2]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(probs, prior):
    """Log-distribution of each token given each state, of samples of a mixture of products; [states, l, v + 1]."""
    table = torch.full((len(STATES), LENGTH, V + 1), -torch.inf, dtype=torch.float64)
    for number, state in enumerate(STATES.tolist()):
        weight = prior.clone()
        for position, token in enumerate(state):
            if token != MASK:
                weight = weight * probs[:, position, token]
        table[number, :, :V] = torch.einsum("s,slv->lv", weight / weight.sum(), probs).log()
    return table


def index(state):
    return state[0] * (V + 1) + state[1]


def states_of(probs):
    """Probability, initial state, sample, masks and number of the state, of all that a step can draw."""
    for start, x, masks in itertools.product(range(len(probs)), CLEAN, MASKS):
        mass = WEIGHTS[masks] * math.prod(probs[start, position, token] for position, token in enumerate(x))
        z = [MASK if is_masked else token for token, is_masked in zip(x, masks, strict=True)]
        yield mass, start, x, torch.tensor(masks), index(z)


def expected_gradient(logits, prior, auxiliary, teacher, beta):
    """Expected gradient of the surrogate with respect to the student's logits, [s, l, v]."""
    logits = logits.clone().requires_grad_(True)
    total = 0.0
    for mass, start, _, masks, state in states_of(logits.detach().softmax(-1)):
        gradient = logit_gradient(auxiliary[state][masks][:, :V], teacher[state][masks][:, :V], beta)
        total = total + prior[start] * mass * surrogate_loss(logits[start][masks].double(), gradient)
    total.backward()
    return logits.grad


def divergence_of(teacher, log_probs, beta):
    forward, backward = (divergence(kind, teacher, log_probs) for kind in ("forward", "backward"))
    return ((1 - beta) * forward + beta * backward).sum()


@pytest.fixture(scope="module")
def teacher():
    """Random predictions, which need not be consistent with any distribution of sequences."""
    return F.pad(random(len(STATES), LENGTH, V, seed=1).log_softmax(-1), (0, 1), value=-torch.inf)


@pytest.mark.parametrize("beta", BETAS)
def test_with_one_initial_state_the_gradient_is_that_of_the_divergence_of_given_states(teacher, beta):
    logits, prior = random(1, LENGTH, V), torch.ones(1, dtype=torch.float64)
    auxiliary = posterior(logits.softmax(-1), prior)
    free = logits.clone().requires_grad_(True)
    total = 0.0
    for mass, _, _, masks, state in states_of(logits.softmax(-1)):  # without gradient of the distribution of states
        total = total + mass * divergence_of(teacher[state][masks][:, :V], free[0][masks].log_softmax(-1), beta)
    total.backward()
    gradient = expected_gradient(logits, prior, auxiliary, teacher, beta)
    torch.testing.assert_close(gradient, free.grad, rtol=1e-6, atol=1e-7)
    assert free.grad.abs().max() > 0.01


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_of_several_initial_states_sum_to_that_of_a_shift_of_all_auxiliary_logits(teacher, beta):
    logits = random(2, LENGTH, V)
    auxiliary = posterior(logits.softmax(-1), PRIOR)
    shift = torch.zeros(LENGTH, V, dtype=torch.float64, requires_grad=True)
    total = 0.0
    for mass, start, _, masks, state in states_of(logits.softmax(-1)):
        shifted = (auxiliary[state][:, :V] + shift)[masks].log_softmax(-1)
        total = total + PRIOR[start] * mass * divergence_of(teacher[state][masks][:, :V], shifted, beta)
    total.backward()
    gradients = expected_gradient(logits, PRIOR, auxiliary, teacher, beta)
    torch.testing.assert_close(gradients.sum(0), shift.grad, rtol=1e-6, atol=1e-7)
    # The gradients of the initial states differ.
    assert not torch.allclose(gradients[0] / PRIOR[0], gradients[1] / PRIOR[1], rtol=0.05)


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_equal_to_the_teacher_has_no_gradient(beta):
    logits = random(2, LENGTH, V)
    auxiliary = posterior(logits.softmax(-1), PRIOR)
    assert expected_gradient(logits, PRIOR, auxiliary, auxiliary, beta).abs().max() < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_the_jeffreys_gradient_is_a_mixture_and_each_row_sums_to_zero(teacher, beta):
    auxiliary = posterior(random(2, LENGTH, V).softmax(-1), PRIOR)
    rows = auxiliary.flatten(0, 1), teacher.flatten(0, 1)
    forward, reverse, mixed = (logit_gradient(*rows, weight) for weight in (0.0, 1.0, beta))
    torch.testing.assert_close(mixed, (1 - beta) * forward + beta * reverse)
    assert mixed.sum(-1).abs().max() < 1e-12
    assert (mixed[:, MASK] == 0).all()


def test_the_surrogate_has_the_gradient_of_the_paper():
    logits, gradient = random(5, V).float().requires_grad_(True), random(5, V, seed=1).float()
    surrogate_loss(logits, gradient).backward()
    actual, logits.grad = logits.grad, None
    (0.5 * (logits - (logits - gradient).detach()) ** 2).sum().backward()
    torch.testing.assert_close(actual, logits.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(actual, gradient)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_impossible_tokens_do_not_change_the_losses_of_the_auxiliary_model(smoothing):
    log_probs, targets = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1),
        torch.arange(5) % 4,
    )
    with_impossible = F.pad(log_probs, (0, 2), value=-torch.inf)
    torch.testing.assert_close(
        auxiliary_losses(with_impossible, targets, smoothing), auxiliary_losses(log_probs, targets, smoothing)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_optimal_auxiliary_model_is_the_posterior(smoothing):
    probs = random(2, LENGTH, V).softmax(-1)
    optimum = posterior(probs, PRIOR)
    smoothed = ((1 - smoothing) * optimum.exp() + smoothing / V).log().masked_fill(optimum == -torch.inf, -torch.inf)
    plain = optimum.clone().requires_grad_(True)

    def gradient(table):
        table = table.clone()
        free = table[..., :V].requires_grad_(True)
        log_probs = F.pad(free.log_softmax(-1), (0, 1), value=-torch.inf)
        total = 0.0
        for mass, start, x, masks, state in states_of(probs):
            losses = auxiliary_losses(log_probs[state][masks], torch.tensor(x)[masks], smoothing)
            total = total + PRIOR[start] * mass * losses.sum()
        total.backward()
        return free.grad.abs().max()

    assert gradient(smoothed) < 1e-9
    assert gradient(optimum + random(*plain.shape, seed=3)) > 0.01
    assert smoothing == 0 or gradient(optimum) > 1e-3


def test_the_weighted_sum_of_divergences_of_states_is_that_of_sequences():
    """As in the NELBO: the sum over the number n of masks of 1/n times the mean over all masks of n positions."""
    first, second = (posterior(random(2, LENGTH, V, seed=seed).softmax(-1), PRIOR) for seed in (0, 1))
    probs = [random(2, LENGTH, V, seed=seed).softmax(-1) for seed in (0, 1)]
    joint = [torch.einsum("s,sa,sb->ab", PRIOR, p[:, 0], p[:, 1]) for p in probs]
    expected = (joint[0] * (joint[0] / joint[1]).log()).sum()
    total = 0.0
    for a, b in CLEAN:
        for masks in MASKS:
            size, z = sum(masks), [MASK if is_masked else token for token, is_masked in zip((a, b), masks, strict=True)]
            rows = (table[index(z)][torch.tensor(masks)][:, :V] for table in (second, first))
            total = total + joint[0][a, b] / math.comb(LENGTH, size) / size * divergence("backward", *rows).sum()
    assert float(total) == pytest.approx(float(expected), rel=1e-6)


def test_mask_ratios_have_their_distributions():
    uniforms = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    ratios = mask_ratios("arccos", uniforms)
    for ratio in (0.1, 0.5, 0.9):  # P(2 arccos(u) / pi <= r) = 1 - cos(pi r / 2)
        assert float((ratios <= ratio).double().mean()) == pytest.approx(1 - math.cos(math.pi * ratio / 2), abs=1e-4)
    assert torch.equal(mask_ratios("uniform", uniforms), uniforms)


def test_an_unknown_distribution_of_mask_ratios_is_refused(unchecked):
    with pytest.raises(UsageError, match="mask ratios is one of arccos, uniform; got 'cosine'"):
        mask_ratios("cosine", torch.rand(2))
