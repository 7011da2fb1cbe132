"""How the student generates in training: in one step, in two moves 1 -> tau -> 0 (the paper), or along a path (ours).

One network pass for each move serves both the sample and its log-probability, and the first pass, which starts from the
all-mask state, has a single row.

On a path the states come from the student's own sampler of ``objective.moves`` moves, and one move of it is scored, by
its state at a time within the move: what the student does at inference, and what guided sampling gives the
discriminator. (A finished sample that is corrupted to t has another distribution, unless the network is consistent:
tokens depend on the move that they came in.)
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.schedule import TimeDensity
from didi.methods.objective_settings import ObjectiveConfig, TrajectoryKind
from didi.models.denoiser import Denoiser
from didi.models.networks import DenoiserNetwork
from didi.world import world


def masked_log_probs(
    denoiser: Denoiser, z: Int[Tensor, "b l"], t: Float[Tensor, " b"], process: Absorbing
) -> Float[Tensor, "n v"]:
    """Log-probabilities at the masked positions of ``z``, in row-major order."""
    features = denoiser.features(z, process.noise_level(denoiser, t.to(z.device)))
    return process.log_probs(denoiser.head(features[process.is_predicted(z)]))


def all_mask_log_probs(
    denoiser: Denoiser, length: int, process: Absorbing, device: torch.device
) -> Float[Tensor, "l v"]:
    """Log-probabilities at every position of the all-mask state."""
    z = process.prior(Canvas.blank(1, length, device))
    return masked_log_probs(denoiser, z, torch.ones(1, dtype=torch.float64), process)


@torch.no_grad()
def states_before_a_move(
    student: Denoiser,
    move: Int[Tensor, " s"],
    num_moves: int,
    uniforms: Float[Tensor, "2 s l"],
    process: Absorbing,
) -> Int[Tensor, "s l"]:
    """States of the student's own ancestral sampler of ``num_moves`` even moves, each before the move numbered.

    Args:
        student: the few-step generator.
        move: for each state, the number of moves that lead to it.
        num_moves: moves of the whole path.
        uniforms: which positions are revealed when, and which tokens they get; float64, where the student lives.
        process: masked diffusion.
    """
    (reveal, draw), device = uniforms, uniforms.device
    z = process.prior(Canvas.blank(len(reveal), reveal.shape[1], device))
    # Several processes make as many passes each, of no rows if need be: sharded weights are gathered in them.
    for number in range(num_moves if world().size > 1 else int(move.max())):
        t, s = (torch.tensor([1 - done / num_moves], dtype=torch.float64) for done in (number, number + 1))
        rows = (move > number).nonzero().squeeze(1).to(device)
        is_revealed = process.is_predicted(z[rows]) & ~is_masked_at(
            reveal[rows], process.schedule.alpha(s).to(device).expand(len(rows))
        )
        inputs = z[:1] if number == 0 else z[rows]  # the first state is one for all
        level = process.noise_level(student, t.to(device).expand(len(inputs)))
        features = student.features(inputs, level).expand(len(rows), -1, -1)[is_revealed]
        log_probs = process.log_probs(student.head(features))
        z[rows] = z[rows].masked_scatter(is_revealed, sample_categorical(log_probs, draw[rows][is_revealed]))
    return z


def draw_times(
    num_states: int, objective: ObjectiveConfig, generator: torch.Generator
) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
    """Intermediate times tau and corruption times t; the same where times are coupled."""
    density = TimeDensity(objective.time_a, objective.time_b)
    num_shared = objective.group_size if objective.advantage == "shared-time" else 1
    tau = density.sample(num_states // num_shared, generator).repeat_interleave(num_shared)
    if objective.coupled_time:
        return tau, tau
    return tau, density.sample(num_states // num_shared, generator).repeat_interleave(num_shared)


class Uniforms:
    """Float64 uniforms of this process's states; drawn for the states of all processes, whose number changes nothing.

    Args:
        num_states: of all processes.
        generator: a CPU generator.
        device: where they are wanted.
    """

    def __init__(self, num_states: int, generator: torch.Generator, device: torch.device) -> None:
        self.num_states, self.generator, self.device = num_states, generator, device

    def __call__(self, *shape: int) -> Float[Tensor, "s ..."]:
        """The next ones, ``[s, *shape]``."""
        drawn = torch.rand(self.num_states, *shape, dtype=torch.float64, generator=self.generator)
        return world().mine(drawn).to(self.device)


class Completions(NamedTuple):
    """Finished samples, and the log-probability of what was drawn at each position since their state; 0 for nothing."""

    x: Int[Tensor, "s g l"]
    log_probs: Float[Tensor, "s g l"]


class Trajectory(NamedTuple):
    """States from which completions are drawn, and their times.

    Attributes:
        tau: time of each state.
        t: time of its corruptions.
        z_tau: the states.
        first_score: log-probability of the moves that led there, where they are scored; else 0.
        first_log_probs: the student's log-probabilities at the all-mask state; None in a process without one.
        second_log_probs: those at the masked positions of ``z_tau``, in row-major order; None on a whole path.
        kind: how they were generated. Corruptions go on with the state of a ``path``, whose visible tokens stay.
        num_moves: of a whole path; None of the others.
        completions: of a whole path; those of the others are one move away.
        record: of a whole path, what its probability is found from, see ``student_moves.Branches``.
    """

    tau: Float[Tensor, " s"]
    t: Float[Tensor, " s"]
    z_tau: Int[Tensor, "s l"]
    first_score: Float[Tensor, " s"]
    first_log_probs: Float[Tensor, "l v"] | None
    second_log_probs: Float[Tensor, "n v"] | None
    kind: TrajectoryKind
    num_moves: int | None = None
    completions: Completions | None = None
    record: Tensor | None = None


def one_step(
    student: DenoiserNetwork, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms
) -> Trajectory:
    """The one-step generator: every state is all masks, and one pass serves all."""
    tau, t = map(world().mine, draw_times(draw.num_states, objective, draw.generator))
    log_probs = all_mask_log_probs(student, length, process, draw.device)
    z_tau = process.prior(Canvas.blank(len(tau), length, draw.device))
    none = torch.zeros(len(tau), device=draw.device)
    return Trajectory(tau, t, z_tau, none, log_probs, log_probs.repeat(len(tau), 1), "one-step")


def two_moves(
    student: DenoiserNetwork, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms
) -> Trajectory:
    """The paper's generator, 1 -> tau -> 0, whose first move is scored as well (Eq. 9)."""
    tau, t = map(world().mine, draw_times(draw.num_states, objective, draw.generator))
    log_probs = all_mask_log_probs(student, length, process, draw.device)
    z_tau = process.prior(Canvas.blank(len(tau), length, draw.device))
    is_visible = ~is_masked_at(draw(length), process.schedule.alpha(tau).to(draw.device))
    state, position = is_visible.nonzero(as_tuple=True)
    tokens = sample_categorical(log_probs.detach()[position], draw(length)[is_visible])
    z_tau[state, position] = tokens
    score = torch.zeros(len(tau), device=draw.device).index_add(0, state, log_probs[position, tokens])
    return Trajectory(tau, t, z_tau, score, log_probs, masked_log_probs(student, z_tau, tau, process), "two-moves")


def path(
    student: DenoiserNetwork, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms
) -> Trajectory:
    """States of the student's own sampler of ``objective.moves`` moves (ours); t lies within the scored move."""
    num_moves = objective.moves
    assert num_moves is not None
    move = world().mine(torch.randint(num_moves, (draw.num_states,), generator=draw.generator))
    tau = 1 - move.double() / num_moves
    t = tau - world().mine(torch.rand(draw.num_states, dtype=torch.float64, generator=draw.generator)) / num_moves
    log_probs = all_mask_log_probs(student, length, process, draw.device)
    draws = torch.rand(2, draw.num_states, length, dtype=torch.float64, generator=draw.generator)
    draws = torch.stack([world().mine(one) for one in draws]).to(draw.device)
    z_tau = states_before_a_move(student, move, num_moves, draws, process)
    none = torch.zeros(len(tau), device=draw.device)
    return Trajectory(tau, t, z_tau, none, log_probs, masked_log_probs(student, z_tau, tau, process), "path")
