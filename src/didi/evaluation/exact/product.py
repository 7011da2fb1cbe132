"""The exact distribution of any sampler whose moves draw every position independently, given the state.

In uniform-state diffusion and with score networks the probability that a position changes depends on the network, so
every move is a sum over all states z. Given z, the two halves of the sequence are independent: with the probabilities
A[z, a] and B[z, b] of the contents of the halves, the distribution after a move is one matrix product,

    p'(a, b) = sum over z of p(z) A[z, a] B[z, b].
"""

from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.diffusion import Process
from didi.evaluation.exact.sampler import CHUNK, network_device
from didi.evaluation.exact.states import all_states
from didi.models.denoiser import Denoiser
from didi.sampling.base import features_at


@runtime_checkable
class PositionwiseSampler(Protocol):
    """A sampler with a method for the distribution of a position, given the network's outputs there."""

    @property
    def denoiser(self) -> Denoiser:
        """The sampled network."""
        ...

    @property
    def process(self) -> Process:
        """The diffusion process of the network."""
        ...

    def move_probs(
        self, logits: Float[Tensor, "n v"], z: Int[Tensor, " n"], t: Float[Tensor, ""], s: Float[Tensor, ""]
    ) -> Float[Tensor, "n v"]:
        """See ``UniformAncestral.move_probs``."""
        ...


@torch.inference_mode()
def positionwise_distribution(
    sampler: PositionwiseSampler, num_symbols: int, length: int, times: Float[Tensor, " k"]
) -> Float[Tensor, " c"]:
    """Probability of every clean sequence under a sampler, float64, ordered with the first position most significant.

    Args:
        sampler: sampler of a process on ``num_symbols`` symbols, followed by the mask if the process has one.
        num_symbols: number V of symbols of clean sequences.
        length: number L of positions; all V^L states, or (V + 1)^L with a mask, are enumerated.
        times: times of the path, decreasing from 1 to 0.
    """
    num = num_symbols + (sampler.process.mask_id is not None)
    states = all_states(num, length)
    if sampler.process.mask_id is None:
        mass = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    else:
        mass = torch.zeros(len(states), dtype=torch.float64)
        mass[-1] = 1
    for t, s in pairwise(times):
        mass = _moved(sampler, states, mass, t, s)
    grid = mass.view((num,) * length)
    return grid[(slice(num_symbols),) * length].reshape(-1)


def _moved(
    sampler: PositionwiseSampler,
    states: Int[Tensor, "n l"],
    mass: Float[Tensor, " n"],
    t: Float[Tensor, ""],
    s: Float[Tensor, ""],
) -> Float[Tensor, " n"]:
    """Distribution over states after a move from ``t`` to ``s``."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in mass.nonzero().squeeze(1).split(CHUNK):
        first, second = half_joint_probs(position_probs(sampler, states[rows], t, s))
        total = total + (first * mass[rows, None]).T @ second
    return total.flatten()


def position_probs(
    sampler: PositionwiseSampler, z: Int[Tensor, "n l"], t: Float[Tensor, ""], s: Float[Tensor, ""]
) -> Float[Tensor, "n l v"]:
    """Distribution of every position after a move from each state, float64, on the CPU."""
    z = z.to(network_device(sampler.denoiser))
    is_predicted = sampler.process.is_predicted(z)
    features = features_at(sampler.denoiser, sampler.process, z, t)
    moved = sampler.move_probs(sampler.denoiser.head(features[is_predicted]), z[is_predicted], t, s)
    probs = F.one_hot(z, moved.shape[-1]).double()
    probs[is_predicted] = moved
    return probs.cpu()


def half_joint_probs(probs: Float[Tensor, "n l v"]) -> tuple[Float[Tensor, "n _"], Float[Tensor, "n _"]]:
    """``joint_probs`` of the first and of the second half of the positions."""
    middle = probs.shape[1] // 2
    return joint_probs(probs[:, :middle]), joint_probs(probs[:, middle:])


def joint_probs(probs: Float[Tensor, "n h v"]) -> Float[Tensor, "n c"]:
    """Probabilities of all sequences for independent positions, ordered with the first position most significant."""
    joint = probs.new_ones(len(probs), 1)
    for position in range(probs.shape[1]):
        joint = (joint[:, :, None] * probs[:, position, None]).flatten(1)
    return joint
