"""The bound of every process and parametrisation, enumerated for two positions of three symbols."""

import itertools

import numpy as np
import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.score import ScoreAbsorbing, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.models.nelbo import nelbo_draws

NUM, EPS = 3, schedule_from_name("log-linear-eps")
CLEAN = torch.tensor(list(itertools.product(range(NUM), repeat=2)))
DATA = torch.tensor([0.30, 0.02, 0.08, 0.05, 0.20, 0.03, 0.02, 0.05, 0.25], dtype=torch.float64)
PROCESSES = {
    "absorbing": Absorbing(NUM),
    "sedd-absorb": ScoreAbsorbing(NUM),
    "uniform": Uniform(NUM),
    "uniform, eps": Uniform(NUM, EPS),
    "sedd-uniform": ScoreUniform(NUM, EPS),
}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def kernel(process, alpha):
    """q(z = j | x = i) of a position, [i, j]."""
    if process.mask_id is None:
        return alpha * torch.eye(NUM, dtype=torch.float64) + (1 - alpha) / NUM
    return torch.cat([alpha * torch.eye(NUM), torch.full((NUM, 1), 1 - alpha)], 1).double()


def exact_logits(process, z, alpha):
    """Outputs of an exact network of the process for each state, [n, l, v]."""
    rates, joint, (first, second) = kernel(process, alpha), DATA.view(NUM, NUM), z.T
    given_other = torch.stack([rates[:, second].T @ joint.T, rates[:, first].T @ joint], 1)
    probs = given_other / given_other.sum(-1, keepdim=True)
    if process.name == "sedd-uniform":  # ratios of the marginals, without x0
        marginal = torch.einsum("xy,xi,yj->ij", joint, rates, rates)
        score = torch.stack([marginal[:, second].T, marginal[first]], 1)
        return (score / score.gather(2, z[..., None])).log()
    if process.mask_id is None:
        return probs.log()
    extra = torch.log(torch.tensor(float(NUM))) if process.name == "sedd-absorb" else torch.tensor(4.0)
    return torch.cat([probs.log() + extra, torch.full((*z.shape, 1), 9.0)], -1)


def losses(process, x0, z, t, logits):
    """Summed loss terms of each state."""
    return process.loss_terms(logits[process.is_predicted(z)], x0, z, t).double().sum(1)


def integrated_loss(process, logits_at):
    """Expected loss over data, states and times, by Gauss-Legendre quadrature in the square root of 1 - alpha."""
    last = (1 - float(process.schedule.alpha(torch.ones((), dtype=torch.float64)))) ** 0.5
    nodes, node_weights = np.polynomial.legendre.leggauss(32)
    states = torch.tensor(list(itertools.product(range(NUM + (process.mask_id is not None)), repeat=2)))
    x0, z = (tensor.flatten(0, 1) for tensor in torch.broadcast_tensors(CLEAN[:, None], states[None]))
    total = process.elbo_draws(Canvas.blank(1, 2), 1, [named_generator("prior")]).prior_divergence * 2
    for node, node_weight in zip(nodes, node_weights, strict=True):
        root = last * (node + 1) / 2
        alpha = 1 - root**2
        t = torch.full((len(z),), (1 - alpha) / (last**2), dtype=torch.float64)  # both schedules are linear
        rates = kernel(process, alpha)
        chance = DATA.repeat_interleave(len(states)) * rates[x0[:, 0], z[:, 0]] * rates[x0[:, 1], z[:, 1]]
        value = (chance * losses(process, x0, z, t, logits_at(process, z, alpha))).sum()
        total += node_weight * last / 2 * float(value * process.loss_weight(t[0]) * 2 * root / last**2)
    return total


def test_the_bound_of_the_exact_prediction_is_the_entropy_of_the_data(process):
    assert integrated_loss(process, exact_logits) == pytest.approx(-float((DATA * DATA.log()).sum()), rel=3e-3)


def wrong_logits(process, z, alpha):
    del alpha
    width = NUM + (process.mask_id is not None)
    table = torch.randn(width**2, 2, width, generator=named_generator("wrong"), dtype=torch.float64)
    return table[z[:, 0] * width + z[:, 1]]


def test_the_bound_includes_the_divergence_from_the_prior_once_for_each_free_position(process):
    class Constant:
        vocab_size, mask_id, length, is_time_conditioned = NUM + (process.mask_id is not None), None, 2, True

        def features(self, inputs, sigma=None, attention_mask=None):
            return torch.zeros(*inputs.shape, 1)

        def head(self, features):
            return features.expand(*features.shape[:-1], self.vocab_size)

    canvas = Canvas.given(CLEAN[:4], torch.tensor([[True, True], [True, False], [False, True], [False, False]]))
    generators = [named_generator("constant", row) for row in range(4)]
    drawn = process.elbo_draws(canvas, 8, [named_generator("constant", row) for row in range(4)])
    copies = canvas.repeat_interleave(8)
    logits = torch.zeros(int(process.is_predicted(drawn.z).sum()), NUM + (process.mask_id is not None))
    token_terms = process.loss_terms(logits, copies.tokens, drawn.z, drawn.t)
    terms = torch.where(copies.is_free, token_terms, 0.0).double().sum(1)
    num_free = torch.tensor([[2.0], [1.0], [1.0], [0.0]]).double()
    expected = (terms * drawn.weight).view(4, 8) + drawn.prior_divergence * num_free
    torch.testing.assert_close(nelbo_draws(Constant(), process, canvas, 8, generators), expected)
    assert (drawn.prior_divergence > 0) == (process.schedule == EPS)


def test_draws_of_the_bound_are_unbiased_for_a_wrong_network(process):
    num, total = 4000, []
    for number, clean in enumerate(CLEAN):
        drawn = process.elbo_draws(Canvas.free(clean[None]), num, [named_generator("draws", number)])
        logits = wrong_logits(process, drawn.z, None)
        terms = (
            losses(process, clean.expand(num, 2), drawn.z, drawn.t, logits) * drawn.weight + 2 * drawn.prior_divergence
        )
        total.append(DATA[number] * terms)
    mean = float(torch.stack(total).sum(0).mean())
    error = float(torch.stack([terms.var() / num for terms in total]).sum().sqrt())
    expected = integrated_loss(process, wrong_logits)
    assert error < 0.05 * expected
    assert mean == pytest.approx(expected, abs=4 * error)
    assert expected > -float((DATA * DATA.log()).sum())
