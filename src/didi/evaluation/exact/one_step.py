"""The distribution of a one-step sampler: a mixture of products, one for each initial state.

The masks and tokens of the initial state are enumerated. Embedding noise cannot be enumerated and is drawn, equally
often for each state, so the estimate of the distribution is unbiased. A divergence of the estimate is biased upwards,
by convexity; the bias is proportional to one over the number of draws, and is estimated from two halves of the draws.
"""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.fixed_masks import mask_sizes
from didi.diffusion.noise import named_generator
from didi.evaluation.exact.product import half_joint_probs
from didi.evaluation.exact.sampler import CHUNK, network_device
from didi.sampling.one_step import OneStep

NOISE_ROWS = 2**16
"""Least number of network rows over which embedding noise is averaged; takes seconds at 7 positions."""


def noise_draws(num_states: int) -> int:
    """Number of draws of the embedding noise for each discrete initial state; even."""
    return 2 * math.ceil(NOISE_ROWS / (2 * num_states))


@torch.inference_mode()
def one_step_distributions(sampler: OneStep, num_symbols: int, length: int) -> Float[Tensor, "h c"]:
    """Probability of every clean sequence, float64, the first position most significant.

    Args:
        sampler: the one-step sampler; its vocabulary is the symbols, followed by the mask.
        num_symbols: number V of symbols of clean sequences.
        length: number L of positions.

    Returns:
        Without embedding noise, one exact row; with noise, two independent estimates from half of the draws each.
    """
    states = initial_states(sampler.initial_state.mask_ratio, num_symbols, length)
    if not sampler.initial_state.noise_std:
        return _mixture(sampler, states, num_symbols)[None]
    repeated = states.repeat(noise_draws(len(states)) // 2, 1)
    generators = (named_generator("exact-one-step", half) for half in range(2))
    return torch.stack([_mixture(sampler, repeated, num_symbols, generator) for generator in generators])


def initial_states(mask_ratio: float, num_symbols: int, length: int) -> Int[Tensor, "n l"]:
    """Every discrete initial state, all of which are equally likely."""
    size = int(mask_sizes(torch.tensor(mask_ratio), torch.tensor(length)))
    tokens = torch.tensor([*itertools.product(range(num_symbols), repeat=length - size)], dtype=torch.long)
    blocks = []
    for visible in itertools.combinations(range(length), length - size):
        block = torch.full((len(tokens), length), num_symbols)
        block[:, visible] = tokens
        blocks.append(block)
    return torch.cat(blocks)


def _mixture(
    sampler: OneStep, states: Int[Tensor, "n l"], num_symbols: int, generator: torch.Generator | None = None
) -> Float[Tensor, " c"]:
    """Mean of the product distributions of all rows of ``states``, each with one draw of the noise."""
    total, device = torch.zeros((), dtype=torch.float64), network_device(sampler.denoiser)
    for z in states.split(CHUNK):
        z, normals = z.to(device), None
        if generator is not None:
            normals = torch.randn(*z.shape, sampler.network.hidden_size, generator=generator).to(device)
        features = sampler.features(z, Canvas.free(z), normals).flatten(0, 1)
        logits = sampler.denoiser.head(features)
        log_probs = sampler.token_distribution.log_probs(logits, sampler.process.mask_id)[:, :num_symbols]
        probs = log_probs.double().softmax(-1).view(*z.shape, num_symbols).cpu()
        first, second = half_joint_probs(probs)
        total = total + first.T @ second
    return total.flatten() / len(states)
