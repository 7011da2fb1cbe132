r"""The exact distribution of the reward-guided sampler (RGAS, Algorithm 2) with a given discriminator.

The tilt of a position does not depend on which positions a move reveals, so a tilted move is an ancestral move with
tilted predictions. A re-ranked move draws M candidates y from the ancestral move P and chooses one with probability
proportional to its weight w(y). With :math:`1/a = \int_0^\infty e^{-as} ds` the probability of a successor needs no sum
over the other M - 1 candidates:

.. math:: P_M(y) = M P(y) E\left[\frac{w(y)}{w(y) + \sum_m w(y_m)}\right]
    = M P(y) \int_0^\infty w(y) e^{-w(y) s} \phi(s)^{M-1} ds, \qquad \phi(s) = E_P[e^{-ws}].

In x = log s the trapezoid rule converges exponentially; with the step used here its error is about 1e-10. Candidates
whose log-weights are more than 600 nats below the largest one have equal weights here.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.errors import UsageError
from didi.evaluation.exact.sampler import (
    CHUNK,
    Table,
    after_move,
    network_device,
    reveal_probabilities,
    successor_probs,
)
from didi.evaluation.exact.states import States
from didi.sampling.base import path_alphas
from didi.sampling.guided import Guided

# The quadrature below sums over x from X_MIN to X_MAX in steps of X_STEP.
X_STEP = 0.4  # the error of the rule is about exp(-pi^2 / X_STEP) = 2e-11
X_MIN = -26.0  # for w of at most 1, the integral below it is at most e^-26 = 5e-12
MIN_LOGIT = -600.0  # lower logits are clamped to this one, so that no exponential overflows
X_MAX = 3.5  # added to the largest -log w; exp(-w s) is e^-33 there


def guided_distribution(
    states: States, sampler: Guided, times: Float[Tensor, " k"], predictions: Callable[[Float[Tensor, ""]], Table]
) -> Float[Tensor, " c"]:
    """Probability of every clean sequence at the end of the guided sampler.

    Args:
        states: the enumerated states.
        sampler: the guided sampler.
        times: times of the path, from 1 to 0.
        predictions: the denoiser's predictions at a time, without guidance; see ``sampler.network_predictions``.

    Raises:
        UsageError: the sampler takes the best of several candidates instead of drawing one.
    """
    guidance = sampler.guidance
    if guidance.select != "sample" and guidance.num_candidates > 1:
        raise UsageError(f"an exact guided distribution needs select 'sample'; got {guidance.select!r}")
    probabilities = reveal_probabilities(path_alphas(sampler.process.schedule, times))
    scales = guidance.scales(len(times) - 1)
    mass = states.all_masked()
    for move, (t, s) in enumerate(pairwise(times)):
        scale = scales[move] if move < len(scales) else 0.0
        table = tilted_predictions(states, sampler, t, scale) if scale else predictions(t)
        transitions = successor_probs(states, probabilities[move], states.by_pattern(table), is_first=move == 0)
        if move >= len(scales) and guidance.num_candidates > 1:
            weights = log_weights(states, sampler, s)
            transitions = ranked_transitions(states, transitions, weights, guidance.num_candidates)
        mass = after_move(states, mass, transitions)
    return states.of_clean(mass)


@torch.no_grad()
def tilted_predictions(states: States, sampler: Guided, t: Float[Tensor, ""], scale: float) -> Table:
    """Distribution of the token at each masked position of each state in a tilted move at time ``t``."""
    table = torch.zeros(len(states), states.length, states.num_symbols, dtype=torch.float64)
    device = network_device(sampler.denoiser)
    for part in states.is_masked.any(1).nonzero()[:, 0].split(CHUNK):
        z, is_masked = states.tokens[part].to(device), states.is_masked[part]
        logits = sampler.tilted_logits(z, Canvas.free(z), is_masked.to(device), t, scale)
        log_probs = sampler.token_distribution.log_probs(logits, sampler.process.mask_id)[:, : states.num_symbols]
        row, position = is_masked.nonzero(as_tuple=True)
        table[part[row], position] = log_probs.double().softmax(-1).cpu()
    return table


@torch.no_grad()
def log_weights(states: States, sampler: Guided, s: Float[Tensor, ""]) -> Float[Tensor, " n"]:
    """Log-weight of each state as a candidate at time ``s``, float64."""
    parts = states.tokens.to(network_device(sampler.denoiser)).split(CHUNK)
    return torch.cat([sampler.log_weights(z, Canvas.free(z), s).double().cpu() for z in parts])


def ranked_transitions(
    states: States,
    transitions: Iterable[tuple[int, Float[Tensor, "_ _"]]],
    weights: Float[Tensor, " n"],
    num_candidates: int,
) -> Iterator[tuple[int, Float[Tensor, "_ _"]]]:
    """Transition probabilities of a re-ranked move.

    Args:
        states: the enumerated states.
        transitions: transition probabilities of one candidate, from ``sampler.successor_probs``.
        weights: log-weight of each state as a candidate, nats.
        num_candidates: M, 1 or more.
    """
    for number, probs in transitions:
        logits = states.patterns[number].successors(weights)
        yield number, ranked_probs(probs, logits - logits.amax(1, keepdim=True), num_candidates)


def ranked_probs(
    probs: Float[Tensor, "r s"], logits: Float[Tensor, "r s"], num_candidates: int
) -> Float[Tensor, "r s"]:
    """Distribution of the candidate that is chosen among M independent draws by a softmax over their logits.

    Args:
        probs: distribution of one draw in each row, float64.
        logits: logits of the outcomes, nats, at most 0.
        num_candidates: M, 1 or more.
    """
    if num_candidates == 1 or probs.shape[1] == 1:
        return probs
    logits = logits.clamp_min(MIN_LOGIT)
    weights, total = logits.exp(), torch.zeros_like(probs)
    for x in torch.arange(X_MIN, X_MAX - float(logits.min()), X_STEP, dtype=torch.float64):
        decay = (weights * -x.exp()).exp_()
        others = (probs * decay).sum(1, keepdim=True) ** (num_candidates - 1)
        total += decay.mul_(others * (x.exp() * X_STEP))
    return num_candidates * probs * weights * total
