"""A whole path (ours): the student's own sampler of ``objective.moves`` moves, from pure noise to the sample.

The moves are those of the process (``student_moves``): masked diffusion reveals tokens (``masked_moves``),
uniform-state diffusion draws every token in every move (``uniform_moves``).

Every move is scored, and the reward is that of the finished sample or of its corruption. With exact rewards of finished
samples the policy gradient is the gradient of the divergence of this sampler p from the discriminator's real side q:

    d KL(p || q) / d theta = E[(log p(x) - log q(x)) * sum over moves of d log p(tokens of the move | state) / d theta],

since the score of the whole path has mean 0. ``tests/objectives/test_whole_path.py`` compares the two in an enumerated
world. Normalised advantages scale the gradient by the spread of the batch; a clamp of the rewards changes it.

With several completions (``objective.completions``) the path branches at its state before a random move: from there
the completions are independent. The moves up to that state are scored by the mean reward of its completions against
the other states, the moves after it by the reward of a completion against the others of its state (``shared-state``).
The expected gradient is the same.

With ``objective.reference_steps`` the discriminator estimates the log-ratio of an earlier student r, the reference, and
the reward of a path adds how far the student has moved: log p(path) - log r(path) (``path_log_probs``). With exact
ratios the policy gradient is that of

    KL(p(path) || r(path | x) q(x)) = KL(p(x) || q(x)) + E KL(p(path | x) || r(path | x)),

a bound that is tight, and has the gradient of the divergence, where student and reference are one: a student whose
bound is below the divergence of the reference has a smaller divergence. It would be 0 where each path has the
probability r(path | x) q(x). With corruptions x is the state that is judged.
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
"""The moves of the student's sampler, by the name of the process."""


def reward_times(objective: ObjectiveConfig, draw: Uniforms) -> Float[Tensor, " s"]:
    """Times at which finished samples are judged: 0, drawn from the density pi(t), or 0 in every other row."""
    num_states = draw.num_states
    if objective.reward_time == "finished":
        return process_group().local_rows(torch.zeros(num_states, dtype=torch.float64))
    t = TimeDensity(objective.time_a, objective.time_b).sample(num_states, draw.generator)
    if objective.reward_time == "both":
        t[::2] = 0
    return process_group().local_rows(t)


def whole_path(
    student: DenoiserNetwork, canvas: Canvas, objective: ObjectiveConfig, process: Process, draw: Uniforms
) -> Trajectory:
    """All moves of the student's own sampler of ``objective.moves`` moves, every one scored (ours).

    With several completions the number of moves up to the branch is drawn, the same for all states; with one, the
    branch is the finished sample. With ``objective.budgets`` the student is conditioned on the number of moves, where
    it reads it.
    """
    num_moves, num_completions = objective.moves, objective.completions
    assert num_moves is not None
    if objective.budgets:
        student = student.at_budget(num_moves)
    branch = num_moves if num_completions == 1 else int(torch.randint(num_moves, (), generator=draw.generator))
    t = reward_times(objective, draw)
    moves = student_moves(student, num_moves, canvas, process, objective.initial_state)
    found = moves.branches(branch, num_completions, draw)
    return Trajectory(
        tau=move_times(num_moves)[branch].expand(len(t)),
        t=t,
        z_tau=found.z,
        first_score=found.first_score,
        first_log_probs=moves.first_log_probs,
        second_log_probs=None,
        kind="whole-path",
        num_moves=num_moves,
        completions=found.completions,
        record=found.record,
    )


def student_moves(
    network: DenoiserNetwork,
    num_moves: int,
    canvas: Canvas,
    process: Process,
    initial_state: InitialState | None,
) -> StudentMoves | OneStepMoves:
    """A network's own sampler of so many even moves.

    Args:
        network: the few-step generator.
        num_moves: 1 where it starts from random tokens.
        canvas: the sequences, where the network lives; all positions are free where ``process`` is not masked diffusion
            or an initial state is given.
        process: of the network.
        initial_state: what it starts from; None for that of the process.
    """
    if initial_state is not None:
        return OneStepMoves(network, cast(Absorbing, process), canvas.length, initial_state)
    return MOVES[process.name].of(network, num_moves, canvas, process)


def path_log_probs(
    network: DenoiserNetwork,
    x: Int[Tensor, "s g l"],
    record: Tensor,
    num_moves: int,
    process: Process,
    initial_state: InitialState | None = None,
    canvas: Canvas | None = None,
) -> Float[Tensor, "s g"]:
    """Log-probability of whole paths under any network: of the tokens that are drawn, given the states.

    Args:
        network: need not be the one that drew the paths.
        x: the finished samples.
        record: of ``Rollout``.
        num_moves: of the paths.
        process: of the network.
        initial_state: of the sampler.
        canvas: which positions of the sequences are free and real; None where all are.
    """
    canvas = canvas or Canvas.blank(len(x), x.shape[-1], x.device)
    moves = student_moves(network, num_moves, canvas, process, initial_state)
    return moves.path_log_probs(x, record)
