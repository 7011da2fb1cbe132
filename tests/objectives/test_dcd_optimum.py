"""The optimum of discrete consistency distillation with a perfect teacher, by enumeration of a Markov chain."""

from itertools import pairwise

import pytest
import torch

from didi.data.markov import exact_chain
from didi.diffusion.uniform import Uniform
from didi.sampling.base import time_grid

NUM, LENGTH = 4, 4
CHAIN, PROCESS = exact_chain(), Uniform(NUM)
STATES = torch.cartesian_prod(*[torch.arange(NUM)] * LENGTH)
LOG_Q = CHAIN.log_likelihood(STATES).double()


def perfect_predictions(t):
    """Distribution of each clean token given the state of the other positions, ``[z, l, v]``."""
    observed = (t / NUM + (1 - t) * torch.eye(NUM, dtype=torch.float64))[:, STATES]  # [v, z, l]
    joint = LOG_Q.exp().expand(len(STATES), -1)  # [z, x]
    columns = []
    for position in range(LENGTH):
        others = [observed[STATES[:, k], :, k].T for k in range(LENGTH) if k != position]
        mass = joint * torch.stack(others).prod(0)
        tokens = [mass[:, STATES[:, position] == token].sum(1) for token in range(NUM)]
        columns.append(torch.stack(tokens, -1))
    table = torch.stack(columns, 1)
    return table / table.sum(-1, keepdim=True)


def less_noisy_state_probs(t, s):
    """Distribution of the less noisy state of a trajectory given the noisier one, ``[z_t, z_s]``."""
    position = torch.zeros(NUM, NUM, NUM, dtype=torch.float64)  # [x0, z_t, z_s] of a position
    for clean in range(NUM):
        position[clean, clean, clean] = 1 - t + t / NUM
        for other in {*range(NUM)} - {clean}:
            position[clean, other, other] = s / NUM
            position[clean, other, clean] = (t - s) / NUM
    joint = torch.zeros(len(STATES), len(STATES), dtype=torch.float64)
    for clean, log_q in zip(STATES, LOG_Q, strict=True):
        states = position.new_ones(1, 1)
        for token in clean.tolist():
            states = torch.kron(states, position[token])
        joint += log_q.exp() * states
    return joint / joint.sum(1, keepdim=True)


def optimum(kind, lengths, t):
    """Minimum of the loss over all predictions at time t after rounds with intervals of these lengths."""
    if not lengths or t == 0:
        return perfect_predictions(t)
    s = max(t - lengths[-1], 0.0)
    target, weights = optimum(kind, lengths[:-1], s), less_noisy_state_probs(t, s)
    if kind == "forward":  # KL(target || student): the mean of the targets
        return torch.einsum("ts,slv->tlv", weights, target)
    return torch.einsum("ts,slv->tlv", weights, target.log()).softmax(-1)  # their normalised geometric mean


def sampling_error(kind, lengths, num_moves):
    """KL(ancestral sampler || data) in nats."""
    mass = torch.full((len(STATES),), 1 / len(STATES), dtype=torch.float64)
    for t, s in pairwise(time_grid(num_moves).tolist()):
        ends = (torch.full((len(STATES),), time, dtype=torch.float64) for time in (t, s))
        probs = PROCESS.posterior(STATES, optimum(kind, lengths, t).log(), *ends)
        moved = mass[:, None]
        for position in range(LENGTH):
            moved = (moved[:, :, None] * probs[:, position, None]).flatten(1)
        mass = moved.sum(0)
    return float((mass * (mass.log() - LOG_Q)).sum())


@pytest.mark.parametrize(
    ("num_moves", "lengths"), [(2, (0.25, 0.5)), (4, (0.125, 0.25)), (8, (0.125,))], ids=lambda value: str(value)
)
def test_training_with_the_published_backward_divergence_lowers_the_error_of_few_moves(num_moves, lengths):
    assert sampling_error("backward", lengths, num_moves) < 0.9 * sampling_error("backward", (), num_moves)


@pytest.mark.slow
def test_training_with_the_published_backward_divergence_raises_the_error_of_many_moves():
    """The sampler needs predictions given the state of the other positions; the optimum differs from these."""
    assert sampling_error("backward", (0.25,), 16) > 1.5 * sampling_error("backward", (), 16)


def test_training_with_the_forward_divergence_raises_the_error_of_few_moves():
    assert sampling_error("forward", (0.25,), 4) > 1.2 * sampling_error("forward", (), 4)
