"""The exact distribution of a few-move absorbing sampler, by enumeration of its states in float64.

Given a state, a move reveals each masked position independently with equal probability, and draws its token from the
network's prediction for the state. The probability of a successor is a product over the masked positions, and the
distribution after a move is a sum over (state, successor) pairs: 9^7 = 4.8 million for 4 symbols and 7 positions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from didi.data.markov import MarkovChain
from didi.diffusion.absorbing import Absorbing, reveal_probability
from didi.errors import UsageError
from didi.evaluation.exact.states import States
from didi.models.denoiser import Denoiser
from didi.sampling.base import features_at
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

Table = Float[Tensor, "n l v"]
"""Distribution of the clean token at every position of every state, float64."""
CHUNK = 4096  # states in one pass of a network


def sampler_distribution(
    states: States, alphas: Float[Tensor, " k"], predictions: Table | Callable[[int], Table]
) -> Float[Tensor, " c"]:
    """Probability of every clean sequence under the ancestral sampler: Eq. 2, summed over all paths.

    Args:
        states: the enumerated states.
        alphas: signal rates at the times of the path, from 0 to 1: ``base.path_alphas`` of any grid, or
            ``ancestral.tau_leaping_alphas``.
        predictions: distribution of the token at every position of every state, float64, of which only masked
            positions are read: one table for a network without time conditioning, else a function of the number of the
            move, from 0.

    Returns:
        Probabilities in the order of ``States.clean``, float64; differentiable in ``predictions``.

    Raises:
        UsageError: the signal rates do not rise from 0 to 1.
    """
    mass = states.all_masked()
    rows = states.by_pattern(predictions) if isinstance(predictions, Tensor) else ()
    for move, probability in enumerate(reveal_probabilities(alphas)):
        if not isinstance(predictions, Tensor):
            rows = states.by_pattern(predictions(move))
        mass = after_move(states, mass, successor_probs(states, probability, rows, is_first=move == 0))
    return states.of_clean(mass)


def reveal_probabilities(alphas: Float[Tensor, " k"]) -> list[float]:
    """Probability, for each move of a path, that a masked position is revealed.

    Raises:
        UsageError: the signal rates do not rise from 0 to 1.
    """
    if len(alphas) < 2 or alphas[0] != 0 or alphas[-1] != 1 or not all(a <= b for a, b in pairwise(alphas.tolist())):
        raise UsageError(f"alphas rise from 0 to 1, one more than there are moves; got {alphas.tolist()}")
    return [float(reveal_probability(after, before)) for before, after in pairwise(alphas.double())]


def successor_probs(
    states: States, probability: float, rows: Sequence[Float[Tensor, "_ l v"]], *, is_first: bool = False
) -> Iterator[tuple[int, Float[Tensor, "_ _"]]]:
    """Transition probabilities of a move, pattern by pattern.

    Args:
        states: the enumerated states.
        probability: probability that a masked position is revealed.
        rows: predictions for the states of each pattern, from ``States.by_pattern``.
        is_first: whether to compute the transitions from the fully masked state only, for the first move.

    Yields:
        The number of a pattern, and for each of its states the probability of each successor, in the order of
        ``Pattern.successors``.
    """
    last = len(states.patterns) - 1
    for number in [last] if is_first else range(last + 1):
        predicted = rows[number]
        probs = predicted.new_ones(len(predicted), 1)
        for position in states.patterns[number].masked:
            stays = predicted.new_full((len(predicted), 1), 1 - probability)
            token = torch.cat([probability * predicted[:, position], stays], 1)
            probs = (probs[:, :, None] * token[:, None]).flatten(1)
        yield number, probs


def after_move(
    states: States, mass: Float[Tensor, " n"], transitions: Iterable[tuple[int, Float[Tensor, "_ _"]]]
) -> Float[Tensor, " n"]:
    """Distribution over states after a move.

    Args:
        states: the enumerated states.
        mass: distribution before the move.
        transitions: transition probabilities from ``successor_probs``; patterns without mass may be left out.
    """
    before, result = states.by_pattern(mass), torch.zeros_like(mass)
    for number, probs in transitions:
        states.patterns[number].add_to(result, before[number][:, None] * probs)
    return result


def chain_predictions(chain: MarkovChain, states: States) -> Table:
    """Exact posterior of every token given the visible tokens of every state, by the forward-backward algorithm.

    Args:
        chain: distribution of clean sequences.
        states: states over the chain's symbols.

    Raises:
        UsageError: a transition of the chain has probability 0, or the states have other symbols.
    """
    if not bool((chain.transition > 0).all()):
        raise UsageError(
            "a state of probability 0 has no posterior, so every transition has a positive probability; got a minimum "
            f"of {float(chain.transition.min())}: use a chain with a positive floor"
        )
    if states.num_symbols != chain.num_symbols:
        raise UsageError(
            f"states have the {chain.num_symbols} symbols of the chain; got states of {states.num_symbols}"
        )
    visible = torch.cat([torch.eye(chain.num_symbols), torch.ones(1, chain.num_symbols)]).double().log()[states.tokens]
    log_transition = chain.transition.log()
    forward, backward = [chain.stationary.log() + visible[:, 0]], [torch.zeros_like(visible[:, 0])]
    for position in range(1, states.length):
        forward.append((forward[-1][:, :, None] + log_transition).logsumexp(1) + visible[:, position])
        backward.append(((backward[-1] + visible[:, -position])[:, None] + log_transition).logsumexp(2))
    return (torch.stack(forward, 1) + torch.stack(backward[::-1], 1)).softmax(-1)


@torch.inference_mode()
def network_predictions(
    denoiser: Denoiser,
    process: Absorbing,
    states: States,
    t: Float[Tensor, ""],
    token_distribution: TokenDistribution = UNMODIFIED,
    *,
    is_first: bool = False,
) -> Table:
    """A network's predictions for every state at time ``t``.

    Args:
        denoiser: network over the states' symbols, on any device.
        process: masked diffusion; its mask is the last symbol.
        states: the enumerated states.
        t: time, for networks that are conditioned on it.
        token_distribution: temperature and top-p.
        is_first: whether to predict for the fully masked state only; the table is zero elsewhere.
    """
    table = torch.zeros(len(states), states.length, states.num_symbols, dtype=torch.float64)
    rows = torch.tensor([len(states) - 1]) if is_first else torch.arange(len(states))
    device = network_device(denoiser)
    for part in rows.split(CHUNK):
        z = states.tokens[part].to(device)
        logits = denoiser.head(features_at(denoiser, process, z, t).flatten(0, 1))
        log_probs = token_distribution.log_probs(logits, process.mask_id)[:, : states.num_symbols]
        # Normalised again, since float32 probabilities sum to 1 within 1e-7 only.
        table[part] = log_probs.double().softmax(-1).view(*z.shape, -1).cpu()
    return table


def network_device(denoiser: Denoiser) -> torch.device:
    """Device of a network's weights; the CPU for one without weights."""
    return next((weight.device for weight in getattr(denoiser, "parameters", list)()), torch.device("cpu"))
