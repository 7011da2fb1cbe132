r"""The exact distribution of reward-guided sampling (RGAS) in uniform-state diffusion, with a given discriminator.

A tilted move draws every position independently (``product``). A re-ranked move chooses one of M candidates; its
probabilities follow from the formula of ``guided``. Every state y can follow every state z. With the weights w(y) of
the candidates, which do not depend on z, the probabilities P(z, y) of one candidate, and the nodes :math:`s_i` of the
quadrature, the transition probabilities are

.. math:: P_M(z, y) = M P(z, y) \sum_i w(y) e^{-w(y) s_i} s_i \Delta\, \phi_i(z)^{M-1}, \qquad
    \phi_i(z) = \sum_y P(z, y) e^{-w(y) s_i},

which takes two matrix products. The work grows with the square of the number of states.
"""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.evaluation.exact.guided import MIN_LOGIT, X_MAX, X_MIN, X_STEP
from didi.evaluation.exact.product import half_joint_probs, position_probs
from didi.evaluation.exact.sampler import CHUNK, network_device
from didi.evaluation.exact.states import all_states
from didi.sampling.uniform_guided import UniformGuided

Times = tuple[Float[Tensor, ""], Float[Tensor, ""]]
"""Times t and s < t of a move from t to s."""
ROWS = 256  # states z whose transition probabilities P(z, y) are in memory at the same time


@torch.no_grad()
def uniform_guided_distribution(
    sampler: UniformGuided, num_symbols: int, length: int, times: Float[Tensor, " k"]
) -> Float[Tensor, " c"]:
    """Probability of every sequence under guided sampling, float64, ordered with the first position most significant.

    Args:
        sampler: guided sampler of a process on ``num_symbols`` symbols, with ``guidance.select`` ``sample``.
        num_symbols: number V of symbols.
        length: number L of positions; all V^L states are enumerated.
        times: times of the path, decreasing from 1 to 0.
    """
    guidance, states = sampler.guidance, all_states(num_symbols, length)
    scales, num = guidance.scales(len(times) - 1), guidance.num_candidates
    mass = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    for number, move in enumerate(pairwise(times)):
        if number < len(scales):
            mass = _tilted(sampler, states, mass, move, scales[number])
        else:
            mass = _ranked(sampler, states, mass, move, num)
    sampler.token_distribution.draw_check.finish()
    return mass


def _tilted(
    sampler: UniformGuided, states: Int[Tensor, "n l"], mass: Float[Tensor, " n"], times: Times, scale: float
) -> Float[Tensor, " n"]:
    """Distribution over states after a tilted move."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(states)).split(CHUNK):
        first, second = half_joint_probs(_tilted_probs(sampler, states[rows], times, scale))
        total = total + (first * mass[rows, None]).T @ second
    return total.flatten()


def _tilted_probs(
    sampler: UniformGuided, states: Int[Tensor, "n l"], times: Times, scale: float
) -> Float[Tensor, "n l v"]:
    """Distribution of every position after a tilted move from each state."""
    z = states.to(network_device(sampler.denoiser))
    if not scale:
        return position_probs(sampler.unguided, states, *times)
    logits = sampler.tilted_logits(z, Canvas.free(z), torch.ones_like(z, dtype=torch.bool), times, scale)
    return sampler.unguided.move_probs(logits, z.flatten(), *times).view(*z.shape, -1).cpu()


def _ranked(
    sampler: UniformGuided, states: Int[Tensor, "n l"], mass: Float[Tensor, " n"], times: Times, num_candidates: int
) -> Float[Tensor, " n"]:
    """Distribution over states after a re-ranked move."""
    if num_candidates == 1:
        return _tilted(sampler, states, mass, times, 0.0)
    device = network_device(sampler.denoiser)
    parts = states.to(device).split(CHUNK)
    logits = torch.cat([sampler.log_weights(z, Canvas.free(z), times[1]).double().cpu() for z in parts])
    logits = (logits - logits.max()).clamp_min(MIN_LOGIT)
    x = torch.arange(X_MIN, X_MAX - float(logits.min()), X_STEP, dtype=torch.float64)
    weights = logits.exp()
    decay = (-weights[:, None] * x.exp()).exp()  # exp(-w(y) s_i) for each successor y and node i
    steps, total = x.exp() * X_STEP, torch.zeros_like(mass)
    for part in torch.arange(len(states)).split(CHUNK):
        first, second = half_joint_probs(position_probs(sampler.unguided, states[part], *times))
        for rows in torch.arange(len(part)).split(ROWS):
            probs = (first[rows, :, None] * second[rows, None]).flatten(1)
            others = (probs @ decay) ** (num_candidates - 1) * steps
            total += num_candidates * weights * (mass[part[rows], None] * probs * (others @ decay.T)).sum(0)
    return total
