"""The distribution of ancestral sampling with latent codes: every move is a mixture of products over the codes.

A move has C^length possible codes, too many to enumerate, so codes are drawn for each state. The estimate of the
distribution is unbiased, because a path leaves a state once and the draws of different states are independent. A
divergence of the estimate is biased upwards, by convexity; the bias is proportional to one over the number of draws,
and is estimated from two halves of the draws.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.noise import named_generator
from didi.evaluation.exact.product import half_joint_probs
from didi.evaluation.exact.sampler import CHUNK, after_move, network_device, reveal_probabilities, successor_probs
from didi.evaluation.exact.states import States
from didi.models.latent import codes_from, num_codes
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import features_at

FIRST_DRAWS = 2**14
"""Number of draws of the codes for the fully masked state, the initial state of all sequences."""
DRAWS = 8
"""Number of draws of the codes for every other state; even."""


class _Draws(NamedTuple):
    """Predicted token distributions at one time, each given one draw of the codes; float64.

    Attributes:
        first: predictions for the fully masked state.
        others: for every draw, predictions for the states of each pattern (``States.by_pattern``).
    """

    first: Float[Tensor, "k l v"]
    others: list[tuple[Tensor, ...]]


@torch.inference_mode()
def latent_distributions(
    sampler: Ancestral, states: States, times: Float[Tensor, " k"], alphas: Float[Tensor, " k"]
) -> Float[Tensor, "2 c"]:
    """Two independent estimates of the probability of every clean sequence, float64, from half of the draws each.

    Args:
        sampler: sampler of a network that reads latent codes, over the symbols of ``states``.
        states: the enumerated states.
        times: times of the path.
        alphas: signal rates at these times.
    """
    halves, is_timed = [], sampler.denoiser.is_time_conditioned
    for half in range(2):
        generator, mass, drawn = named_generator("exact-latent", half), states.all_masked(), None
        for move, probability in enumerate(reveal_probabilities(alphas)):
            # The first move starts from the fully masked state only.
            num_draws = DRAWS // 2 if move or not is_timed else 0
            if drawn is None or is_timed:
                drawn = _draws(sampler, states, times[move], generator, num_draws if len(times) > 2 else 0)
            mass = _moved(states, mass, probability, drawn)
        halves.append(states.of_clean(mass))
    return torch.stack(halves)


def _draws(
    sampler: Ancestral, states: States, t: Float[Tensor, ""], generator: torch.Generator, num_draws: int
) -> _Draws:
    """Half of the draws at time ``t``, with ``num_draws`` draws for each state that is not fully masked."""
    num_symbols, others = states.num_symbols, []
    first = _predictions(sampler, states.tokens[-1:].expand(FIRST_DRAWS // 2, -1), t, num_symbols, generator)
    partly_masked = states.is_masked.any(1).nonzero()[:-1, 0]
    for _ in range(num_draws):
        table = torch.zeros(len(states), states.length, num_symbols, dtype=torch.float64)
        table[partly_masked] = _predictions(sampler, states.tokens[partly_masked], t, num_symbols, generator)
        others.append(states.by_pattern(table))
    return _Draws(first, others)


def _moved(states: States, mass: Float[Tensor, " n"], probability: float, drawn: _Draws) -> Float[Tensor, " n"]:
    """Distribution over states after a move."""
    stays = drawn.first.new_full((*drawn.first.shape[:2], 1), 1 - probability)
    tokens = torch.cat([probability * drawn.first, stays], 2)  # the mask is the last symbol
    left, right = half_joint_probs(tokens)
    moved = mass[-1] * (left.T @ right).flatten() / len(tokens)
    for rows in drawn.others:
        moved += after_move(states, mass, _without_fully_masked(states, probability, rows)) / len(drawn.others)
    return moved


def _without_fully_masked(
    states: States, probability: float, rows: tuple[Tensor, ...]
) -> Iterator[tuple[int, Float[Tensor, "_ _"]]]:
    """``successor_probs`` of all patterns but the fully masked one, which is the last."""
    last = len(states.patterns) - 1
    return ((number, probs) for number, probs in successor_probs(states, probability, rows) if number != last)


def _predictions(
    sampler: Ancestral, z: Int[Tensor, "n l"], t: Float[Tensor, ""], num_symbols: int, generator: torch.Generator
) -> Float[Tensor, "n l v"]:
    """Distribution of the token at every position of each state, given one draw of its codes; float64."""
    predictions, number = [], num_codes(sampler.denoiser)
    device = network_device(sampler.denoiser)
    for part in z.split(CHUNK):
        codes = codes_from(torch.rand(part.shape, dtype=torch.float64, generator=generator), number).to(device)
        features = features_at(sampler.denoiser, sampler.process, part.to(device), t, codes=codes).flatten(0, 1)
        log_probs = sampler.token_distribution.log_probs(sampler.denoiser.head(features), sampler.process.mask_id)
        predictions.append(log_probs[:, :num_symbols].double().softmax(-1).view(*part.shape, -1).cpu())
    return torch.cat(predictions)
