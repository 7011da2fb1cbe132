r"""The exact distribution of reward-guided sampling (RGAS) in uniform-state diffusion, with a given discriminator.

A tilted move draws every position independently (``product``). A re-ranked move chooses one of M candidates by the
formula of ``guided``. Any state may follow any other: with the weights w(y), which do not depend on the state z that is
moved from, the nodes :math:`s_i` of the quadrature and P(z, y) one draw of the move, the probabilities of the move are

.. math:: P_M(z, y) = M P(z, y) \sum_i w(y) e^{-w(y) s_i} s_i \Delta\, \phi_i(z)^{M-1}, \qquad
    \phi_i(z) = \sum_y P(z, y) e^{-w(y) s_i},

two products of matrices. The work grows with the square of the number of states.
"""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.evaluation.exact.guided import HIGHEST, LEAST_LOGIT, LOWEST, STEP
from didi.evaluation.exact.product import CHUNK, all_states, joint_probs, position_probs
from didi.evaluation.exact.sampler import network_device
from didi.sampling.uniform_guided import UniformGuided

Times = tuple[Float[Tensor, ""], Float[Tensor, ""]]
ROWS = 256  # states whose transition probabilities to all others exist at the same time


@torch.no_grad()
def uniform_guided_distribution(
    sampler: UniformGuided, num_symbols: int, length: int, times: Float[Tensor, " k"]
) -> Float[Tensor, " c"]:
    """Probability of every clean sequence at the end of guided sampling, float64, the first position most significant.

    Args:
        sampler: of a process on ``num_symbols`` symbols, that draws among its candidates.
        num_symbols: symbols V.
        length: positions L; all V^L states are enumerated.
        times: of the moves, falling from 1 to 0.
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
        first, second = _halves(_tilted_probs(sampler, states[rows], times, scale))
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
    logits = (logits - logits.max()).clamp_min(LEAST_LOGIT)
    x = torch.arange(LOWEST, HIGHEST - float(logits.min()), STEP, dtype=torch.float64)
    weights = logits.exp()
    decay = (-weights[:, None] * x.exp()).exp()  # of each successor at each node
    steps, total = x.exp() * STEP, torch.zeros_like(mass)
    for part in torch.arange(len(states)).split(CHUNK):
        first, second = _halves(position_probs(sampler.unguided, states[part], *times))
        for rows in torch.arange(len(part)).split(ROWS):
            probs = (first[rows, :, None] * second[rows, None]).flatten(1)
            others = (probs @ decay) ** (num_candidates - 1) * steps
            total += num_candidates * weights * (mass[part[rows], None] * probs * (others @ decay.T)).sum(0)
    return total


def _halves(probs: Float[Tensor, "n l v"]) -> list[Float[Tensor, "n _"]]:
    """Probabilities of all contents of the first and of the second half of the positions."""
    middle = probs.shape[1] // 2
    return [joint_probs(half) for half in (probs[:, :middle], probs[:, middle:])]
