r"""The student that minimises the expected loss of SDTT (``methods.sdtt``), by enumeration.

A student without time conditioning is a table: a distribution of the token at each masked position of each state. The
target is made by two teacher steps of size dt from time t. The first step reveals each of the n masked positions of a
state z with probability c = min(1, dt / t); A denotes the revealed positions and z_A the state after the step. The
target is the teacher's prediction at z for the positions in A, and its prediction at z_A for the other masked
positions. The expected loss of a round is a sum over A and the tokens of A and an integral over t, whose density given
n of L masked positions is proportional to t^n (1 - t)^{L - n}. Its minimum is

.. math:: p(v | z) \propto \exp E[\log q(v)] \quad (\texttt{kl}), \qquad
    p(v | z) = E[q(v)] \quad (\texttt{forward-kl})

with the target q. Times are those of the log-linear schedule.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.errors import UsageError
from didi.evaluation.exact.sampler import Table
from didi.evaluation.exact.states import States
from didi.objectives.sdtt import step_size

NUM_TIMES = 2000  # midpoints of the integral over t, whose integrand has a kink at dt
MIN_PROB = 1e-12  # smallest probability in a logarithm, far below the probabilities that a network predicts


def fixed_point(
    states: States, teacher: Table, *, rounds: int, first_step: int, loss: Literal["kl", "forward-kl"] = "kl"
) -> Table:
    """The table of the last round's student, where the student of every round minimises the expected loss.

    Args:
        states: the enumerated states.
        teacher: predictions of the first teacher at every position of every state, float64; only masked positions are
            read.
        rounds: number of rounds; in each, the target is made by two steps of the teacher.
        first_step: number of teacher steps from t = 1 to t = 0 in the first round.
        loss: see ``methods.sdtt.SdttConfig.loss``.

    Raises:
        UsageError: ``loss`` is neither ``kl`` nor ``forward-kl``.
    """
    if loss not in ("kl", "forward-kl"):
        raise UsageError(f"the fixed point of SDTT is that of the losses kl and forward-kl; got {loss!r}")
    table = teacher
    for number in range(rounds):
        table = _round(states, table, step_size(number, first_step, 2), is_geometric=loss == "kl")
    return table


def reveal_weights(num_masked: int, length: int, dt: float) -> Float[Tensor, " a"]:
    """Probability that the first step reveals a certain set of a positions, for a from 0 to ``num_masked``.

    Args:
        num_masked: number n of masked positions of the state.
        length: number L of positions.
        dt: step size.
    """
    t = (torch.arange(NUM_TIMES, dtype=torch.float64) + 0.5) / NUM_TIMES
    density = t**num_masked * (1 - t) ** (length - num_masked)
    chance = (dt / t).clamp(max=1)
    sizes = torch.arange(num_masked + 1, dtype=torch.float64)[:, None]
    return (chance**sizes * (1 - chance) ** (num_masked - sizes)) @ (density / density.sum())


def _round(states: States, teacher: Table, dt: float, *, is_geometric: bool) -> Table:
    """The student of one round."""
    averaged = teacher.clamp_min(MIN_PROB).log() if is_geometric else teacher
    rows = states.by_pattern(torch.cat([teacher, averaged], -1))
    order = states.by_pattern(torch.arange(len(states), dtype=torch.float64))
    student = torch.zeros_like(teacher)
    for pattern, of_pattern, numbers in zip(states.patterns, rows, order, strict=True):
        probs, averaged_here = of_pattern.chunk(2, -1)
        index = numbers.long()
        weights = reveal_weights(len(pattern.masked), states.length, dt)
        student[index] = _expected_target(states, pattern.masked, probs, averaged_here, averaged, index, weights)
    if is_geometric:
        student = student.softmax(-1)
    return student


def _expected_target(
    states: States,
    masked: tuple[int, ...],
    probs: Float[Tensor, "r l v"],
    averaged_here: Float[Tensor, "r l v"],
    averaged: Table,
    index: Int[Tensor, " r"],
    weights: Float[Tensor, " a"],
) -> Float[Tensor, "r l v"]:
    """Expectation of the target (of its logarithm, for ``kl``) in the states of one pattern.

    Args:
        states: the enumerated states.
        masked: masked positions of the pattern.
        probs: the teacher's predictions in the states of the pattern.
        averaged_here: ``averaged`` in the states of the pattern.
        averaged: the averaged quantity in all states: predictions, or their logarithms for ``kl``.
        index: indices of the states of the pattern.
        weights: from ``reveal_weights``.
    """
    total = torch.zeros_like(averaged_here)
    num_symbols, powers = states.num_symbols, (states.num_symbols + 1) ** torch.arange(states.length - 1, -1, -1)
    for subset in range(2 ** len(masked)):
        revealed = [position for bit, position in enumerate(masked) if subset >> bit & 1]
        hidden = [position for position in masked if position not in revealed]
        chosen, after = probs.new_ones(len(probs), 1), index[:, None]
        for position in revealed:  # the mask is the digit num_symbols of a state's index
            chosen = (chosen[:, :, None] * probs[:, position, None]).flatten(1)
            moved = (torch.arange(num_symbols) - num_symbols) * powers[position]
            after = (after[:, :, None] + moved).flatten(1)
        weight = weights[len(revealed)]
        for position in hidden:
            total[:, position] += weight * torch.einsum("rs,rsv->rv", chosen, averaged[after, position])
        total[:, revealed] += weight * averaged_here[:, revealed]
    return total
