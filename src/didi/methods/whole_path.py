"""A whole path: all ``objective.moves`` moves of the student's ancestral sampler, from pure noise to the sample.

The moves depend on the process (``student_moves``): masked diffusion reveals tokens (``masked_moves``),
uniform-state diffusion draws every token in every move (``uniform_moves``).

Every move is scored, with the reward of the finished sample or of its corruption. With exact rewards of finished
samples the policy gradient is the gradient of the divergence of this sampler p from the distribution q of real samples:

    d KL(p || q) / d theta = E[(log p(x) - log q(x)) * sum over moves of d log p(tokens of the move | state) / d theta],

since the score of the whole path has mean 0. ``tests/objectives/test_whole_path.py`` compares the two by
enumeration. Normalised advantages scale the gradient by the spread of the batch; a clamp of the rewards changes it.

With several completions (``objective.completions``) a path branches at its state before a random move:
completions after it are independent. The reward of the moves before the branch is the mean reward of the completions,
with the other states' mean as baseline; the reward of the moves after it is that of the completion, with the mean of
the state's other completions as baseline (``shared-state``). The expected gradient is the same.

With ``objective.reference_steps`` the discriminator estimates the log-ratio of an earlier student r, the reference, and
the reward of a path adds the log-ratio of student and reference: log p(path) - log r(path) (``path_log_probs``). With
exact ratios the policy gradient is that of

    KL(p(path) || r(path | x) q(x)) = KL(p(x) || q(x)) + E KL(p(path | x) || r(path | x)),

an upper bound on KL(p(x) || q(x)), equal to it and with equal gradient if student and reference are equal. So a student
whose bound is below the divergence of the reference has a smaller divergence than the reference. The bound is 0 if each
path has the probability r(path | x) q(x). With corruptions, x is the corrupted state that the discriminator reads.
"""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.schedule import TimeDensity
from didi.diffusion.uniform import Uniform
from didi.methods.masked_moves import MaskedMoves
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.one_step_moves import OneStepMoves
from didi.methods.student_moves import StudentMoves, move_times
from didi.methods.trajectories import Trajectory, Uniforms
from didi.methods.uniform_moves import UniformMoves
from didi.models.initial_state import InitialState
from didi.models.networks import DenoiserNetwork
from didi.process_group import process_group

MOVES: Mapping[str, type[StudentMoves]] = {Absorbing.name: MaskedMoves, Uniform.name: UniformMoves}
"""The ancestral sampler for each process, by its name."""


def reward_times(objective: ObjectiveConfig, draw: Uniforms) -> Float[Tensor, " s"]:
    """Corruption times of finished samples: 0, drawn from the density pi(t), or 0 in every second row."""
    num_states = draw.num_states
    if objective.reward_time == "finished":
        return process_group().local_rows(torch.zeros(num_states, dtype=torch.float64))
    t = TimeDensity(objective.time_a, objective.time_b).sample(num_states, draw.generator)
    if objective.reward_time == "both":
        t[::2] = 0
    return process_group().local_rows(t)


def whole_path(
    student: DenoiserNetwork, process: Process, canvas: Canvas, objective: ObjectiveConfig, draw: Uniforms
) -> Trajectory:
    """All moves of the student's ancestral sampler of ``objective.moves`` moves; every move is scored.

    With several completions the number of moves before the branch is random, the same for all states; with one
    completion the branch is the finished sample. With ``objective.budgets`` a student that reads the number of moves is
    conditioned on it.
    """
    num_moves, num_completions = objective.moves, objective.completions
    assert num_moves is not None
    if objective.budgets:
        student = student.at_budget(num_moves)
    branch = num_moves if num_completions == 1 else int(torch.randint(num_moves, (), generator=draw.generator))
    t = reward_times(objective, draw)
    moves = student_moves(student, process, num_moves, canvas, objective.initial_state)
    branches = moves.branches(branch, num_completions, draw)
    return Trajectory(
        tau=move_times(num_moves)[branch].expand(len(t)),
        t=t,
        z_tau=branches.z,
        first_score=branches.first_score,
        first_log_probs=moves.first_log_probs,
        second_log_probs=None,
        kind="whole-path",
        num_moves=num_moves,
        completions=branches.completions,
        record=branches.record,
    )


def student_moves(
    network: DenoiserNetwork,
    process: Process,
    num_moves: int,
    canvas: Canvas,
    initial_state: InitialState | None,
) -> StudentMoves | OneStepMoves:
    """A network's ancestral sampler of ``num_moves`` equal moves.

    Args:
        network: the few-step generator.
        process: process of the network.
        num_moves: number of moves; 1 with an ``initial_state``.
        canvas: the sequences, on the network's device; positions must be free if ``process`` is not masked diffusion or
            there is an ``initial_state``.
        initial_state: distribution of the initial state; None for that of the process.
    """
    if initial_state is not None:
        return OneStepMoves(network, cast(Absorbing, process), canvas.length, initial_state)
    return MOVES[process.name].of(network, process, num_moves, canvas)


def path_log_probs(
    network: DenoiserNetwork,
    process: Process,
    x: Int[Tensor, "s g l"],
    record: Tensor,
    num_moves: int,
    canvas: Canvas,
    initial_state: InitialState | None = None,
) -> Float[Tensor, "s g"]:
    """Log-probability of whole paths under a network: of the drawn tokens given the states before them.

    Args:
        network: any network; another network may have drawn the paths.
        process: process of the network.
        x: finished samples of the paths.
        record: ``Rollout.record`` of the paths.
        num_moves: number of moves of the paths.
        canvas: masks of the free and real positions of the sequences.
        initial_state: distribution of the initial state; None for that of the process.
    """
    moves = student_moves(network, process, num_moves, canvas, initial_state)
    return moves.path_log_probs(x, record)
