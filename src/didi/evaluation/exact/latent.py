"""The distribution of ancestral sampling with latent codes: every move is a mixture of products over the codes.

There are C^length codes of a move, too many to enumerate. They are drawn for each state, so that the distribution is an
unbiased estimate: a path leaves a state once, and the draws of different states are independent. A divergence of that
estimate is biased upwards, by convexity; the bias falls as one over the number of draws, and two halves of the draws
show how large it is.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.noise import named_generator
from didi.evaluation.exact.product import joint_probs
from didi.evaluation.exact.sampler import CHUNK, after_move, network_device, reveal_chances, successor_probs
from didi.evaluation.exact.states import States
from didi.models.latent import codes_from, num_codes
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import features_at

FIRST_DRAWS = 2**14
"""Draws of the codes of the fully masked state, with which all sequences begin."""
DRAWS = 8
"""Draws of the codes of every other state; even."""


class _Draws(NamedTuple):
    """Predictions of the tokens at a time, each with codes of its own; float64.

    Attributes:
        first: in the fully masked state.
        others: in the states of each pattern (``States.by_pattern``), for every draw.
    """

    first: Float[Tensor, "k l v"]
    others: list[tuple[Tensor, ...]]


@torch.inference_mode()
def latent_distributions(
    sampler: Ancestral, states: States, times: Float[Tensor, " k"], alphas: Float[Tensor, " k"]
) -> Float[Tensor, "2 c"]:
    """Probability of every clean sequence, float64, each row from one half of the draws.

    Args:
        sampler: of a network that reads latent codes, and of the symbols of ``states``.
        states: what is enumerated.
        times: of the path.
        alphas: signal rates at these times.
    """
    halves, is_timed = [], sampler.denoiser.is_time_conditioned
    for half in range(2):
        generator, mass, drawn = named_generator("exact-latent", half), states.all_masked(), None
        for move, chance in enumerate(reveal_chances(alphas)):
            num_draws = DRAWS // 2 if move or not is_timed else 0  # all is masked before the first move
            if drawn is None or is_timed:
                drawn = _draws(sampler, states, times[move], generator, num_draws if len(times) > 2 else 0)
            mass = _moved(states, mass, chance, drawn)
        halves.append(states.of_clean(mass))
    return torch.stack(halves)


def _draws(
    sampler: Ancestral, states: States, t: Float[Tensor, ""], generator: torch.Generator, num_draws: int
) -> _Draws:
    """Half of the draws at a time, ``num_draws`` of them for the states that are not fully masked."""
    number, others = states.num_symbols, []
    first = _predictions(sampler, states.tokens[-1:].expand(FIRST_DRAWS // 2, -1), t, number, generator)
    read = states.is_masked.any(1).nonzero()[:-1, 0]
    for _ in range(num_draws):
        table = torch.zeros(len(states), states.length, number, dtype=torch.float64)
        table[read] = _predictions(sampler, states.tokens[read], t, number, generator)
        others.append(states.by_pattern(table))
    return _Draws(first, others)


def _moved(states: States, mass: Float[Tensor, " n"], chance: float, drawn: _Draws) -> Float[Tensor, " n"]:
    """Distribution over states after a move."""
    stays = drawn.first.new_full((*drawn.first.shape[:2], 1), 1 - chance)
    tokens = torch.cat([chance * drawn.first, stays], 2)  # the mask is the last symbol
    halves = (joint_probs(one) for one in (tokens[:, : states.length // 2], tokens[:, states.length // 2 :]))
    left, right = halves
    moved = mass[-1] * (left.T @ right).flatten() / len(tokens)
    for rows in drawn.others:
        moved += after_move(states, mass, _but_the_first(states, chance, rows)) / len(drawn.others)
    return moved


def _but_the_first(
    states: States, chance: float, rows: tuple[Tensor, ...]
) -> Iterator[tuple[int, Float[Tensor, "_ _"]]]:
    """``successor_probs`` of all patterns but the fully masked one, which is the last."""
    last = len(states.patterns) - 1
    return (one for one in successor_probs(states, chance, rows) if one[0] != last)


def _predictions(
    sampler: Ancestral, z: Int[Tensor, "n l"], t: Float[Tensor, ""], num_symbols: int, generator: torch.Generator
) -> Float[Tensor, "n l v"]:
    """Distribution of the token at every position of each state, given one draw of its codes; float64."""
    found, number = [], num_codes(sampler.denoiser)
    device = network_device(sampler.denoiser)
    for part in z.split(CHUNK):
        codes = codes_from(torch.rand(part.shape, dtype=torch.float64, generator=generator), number).to(device)
        features = features_at(sampler.denoiser, sampler.process, part.to(device), t, codes=codes).flatten(0, 1)
        log_probs = sampler.token_distribution.log_probs(sampler.denoiser.head(features), sampler.process.mask_id)
        found.append(log_probs[:, :num_symbols].double().softmax(-1).view(*part.shape, -1).cpu())
    return torch.cat(found)
