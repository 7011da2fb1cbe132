"""The minimum of KL(student of K moves || data), by gradient descent on a table of predictions.

A student without time conditioning is a table: a distribution of the token at each position of each state. The KL of
its K-move sampler is a differentiable function of the table, so descent needs no samples and no network. The problem
is not convex: the result is an upper bound of the minimum, which is tight where it is nearly 0.
"""

from dataclasses import dataclass

import torch

from didi.data.markov import MarkovChain
from didi.diffusion.schedule import LogLinear
from didi.errors import UsageError
from didi.evaluation.exact.divergences import ExactDivergences, exact_divergences
from didi.evaluation.exact.sampler import chain_predictions, sampler_distribution
from didi.evaluation.exact.states import States
from didi.sampling.base import Grid, path_alphas, time_grid

TINY = torch.finfo(torch.float64).tiny  # p log p has no finite gradient at p = 0


@dataclass(frozen=True)
class Limit:
    """The best K-move student that gradient descent reaches from the exact posterior.

    Attributes:
        num_moves: K.
        steps: number of descent steps.
        teacher: divergences of the K-move sampler of the exact posterior.
        student: divergences of the K-move sampler of the optimised table.
    """

    num_moves: int
    steps: int
    teacher: ExactDivergences
    student: ExactDivergences


def minimal_divergence(
    chain: MarkovChain, length: int, num_moves: int, *, steps: int = 300, rate: float = 0.05, grid: Grid = "uniform"
) -> Limit:
    """Minimise KL(p || q) of the K-move ancestral sampler over all students without time conditioning.

    Args:
        chain: the distribution q.
        length: number of tokens of a sequence.
        num_moves: K.
        steps: number of steps of Adam; the learning rate decays linearly to 0.
        rate: initial learning rate of the log-probabilities.
        grid: spacing of the times, for the log-linear schedule.

    Raises:
        UsageError: ``num_moves`` or ``steps`` is below 1, there are too many states, or a transition of the chain has
            probability 0.
    """
    if steps < 1:
        raise UsageError(f"steps is 1 or more; got {steps}")
    states, alphas = States(chain.num_symbols, length), path_alphas(LogLinear(), time_grid(num_moves, grid))
    teacher = chain_predictions(chain, states)
    log_q = chain.log_likelihood(states.clean)
    table = teacher.log().requires_grad_(True)
    optimizer = torch.optim.Adam([table], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        p = sampler_distribution(states, alphas, table.softmax(-1))
        (p * (p.clamp_min(TINY).log() - log_q)).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        student = sampler_distribution(states, alphas, table.softmax(-1))
    return Limit(
        num_moves,
        steps,
        teacher=exact_divergences(sampler_distribution(states, alphas, teacher), log_q),
        student=exact_divergences(student, log_q),
    )
