"""Trajectories of a masked student in training: one step, two moves 1 -> tau -> 0 (the paper), or a path.

Each move needs one network pass, from which tokens are drawn and scored. If no tokens are given, the pass of the first
move, from the all-mask state, has a single row.

A path consists of states of the student's ancestral sampler of ``objective.moves`` moves. One of its moves is scored,
with the reward of a state at a time within the move. These are the states that occur at inference and that guided
sampling scores. A finished sample that is corrupted to t has another distribution, since the distribution of a token
depends on the move that reveals it, unless all predictions of the network are conditionals of one joint distribution.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.schedule import TimeDensity
from didi.methods.objective_settings import ObjectiveConfig, TrajectoryKind
from didi.models.denoiser import Denoiser
from didi.models.latent import codes_from, features_with, num_codes
from didi.models.networks import DenoiserNetwork
from didi.process_group import process_group


def masked_log_probs(
    denoiser: Denoiser,
    process: Absorbing,
    z: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "n v"]:
    """Log-probabilities at the masked positions of ``z``, in row-major order."""
    features = denoiser.features(z, process.noise_level(denoiser, t.to(z.device)), attention_mask)
    return process.log_probs(denoiser.head(features[process.is_predicted(z)]))


class FirstStates(NamedTuple):
    """The states at t = 1, in which all free positions are masked, and the predictions of a network at them.

    Attributes:
        z: the states.
        log_probs: log-probabilities. If all states are equal, one row for each position; otherwise one row for each
            free position of each state, in row-major order.
        row: row of ``log_probs`` for each position of each state; undefined at positions that are not free.
    """

    z: Int[Tensor, "s l"]
    log_probs: Float[Tensor, "n v"]
    row: Int[Tensor, "s l"]


def first_states(denoiser: Denoiser, process: Absorbing, canvas: Canvas) -> FirstStates:
    """The states before the first move, and their predictions; equal states share one network pass."""
    z, device = process.prior(canvas), canvas.tokens.device
    if canvas.is_all_free:
        log_probs = masked_log_probs(denoiser, process, z[:1], torch.ones(1, dtype=torch.float64))
        return FirstStates(z, log_probs, torch.arange(canvas.length, device=device).expand(z.shape))
    distinct, number = torch.unique(z, dim=0, return_inverse=True)
    states = torch.arange(len(z), device=device)
    first = torch.empty(len(distinct), dtype=torch.long, device=device).scatter_(0, number, states)
    mask = canvas.rows(first).attention_mask
    level = process.noise_level(denoiser, torch.ones(len(first), dtype=torch.float64, device=device))
    features = denoiser.features(z[first], level, mask)
    log_probs = process.log_probs(denoiser.head(features[number][canvas.is_free]))
    row = canvas.is_free.flatten().cumsum(0).view(z.shape) - 1
    return FirstStates(z, log_probs, row.clamp(min=0))


@torch.no_grad()
def states_before_a_move(
    student: Denoiser,
    process: Absorbing,
    move: Int[Tensor, " s"],
    num_moves: int,
    uniforms: Float[Tensor, "k s l"],
    canvas: Canvas | None = None,
) -> Int[Tensor, "s l"]:
    """States of the student's ancestral sampler of ``num_moves`` equal moves, each after ``move`` moves.

    Args:
        student: the few-step generator.
        process: masked diffusion.
        move: for each state, the number of moves before it.
        num_moves: moves of the whole path.
        uniforms: uniform numbers that determine when positions are revealed (k = 0), their tokens (k = 1) and, if the
            student reads latent codes, the codes of each move (k > 1); float64, on the student's device.
        canvas: masks of the free and real positions; None if all positions are free.
    """
    (reveal, draw, *code_draws), device, number_of_codes = uniforms, uniforms.device, num_codes(student)
    canvas = canvas or Canvas.blank(len(reveal), reveal.shape[1], device)
    # If all states are equal before the first move, it needs a pass of one row only.
    z, is_shared = process.prior(canvas), canvas.is_all_free and not number_of_codes
    # Sharded weights are gathered in each pass, so all processes make equally many passes, some without rows.
    for number in range(num_moves if process_group().size > 1 else int(move.max())):
        t, s = (torch.tensor([1 - end / num_moves], dtype=torch.float64) for end in (number, number + 1))
        rows = (move > number).nonzero().squeeze(1).to(device)
        is_revealed = process.is_predicted(z[rows]) & ~is_masked_at(
            reveal[rows], process.schedule.alpha(s).to(device).expand(len(rows))
        )
        is_first = number == 0 and is_shared
        inputs = z[:1] if is_first else z[rows]
        level = process.noise_level(student, t.to(device).expand(len(inputs)))
        mask = canvas.rows(rows[:1] if is_first else rows).attention_mask
        codes = codes_from(code_draws[number][rows], number_of_codes) if number_of_codes else None
        features = features_with(student, inputs, level, mask, codes).expand(len(rows), -1, -1)[is_revealed]
        log_probs = process.log_probs(student.head(features))
        z[rows] = z[rows].masked_scatter(is_revealed, sample_categorical(log_probs, draw[rows][is_revealed]))
    return z


def draw_times(
    num_states: int, objective: ObjectiveConfig, generator: torch.Generator
) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
    """Intermediate times tau and corruption times t, which are equal with ``objective.coupled_time``."""
    density = TimeDensity(objective.time_a, objective.time_b)
    num_shared = objective.group_size if objective.advantage == "shared-time" else 1
    tau = density.sample(num_states // num_shared, generator).repeat_interleave(num_shared)
    if objective.coupled_time:
        return tau, tau
    return tau, density.sample(num_states // num_shared, generator).repeat_interleave(num_shared)


class Uniforms:
    """Float64 uniform numbers for this process's states.

    They are drawn for the states of all processes, so that they do not depend on the number of processes.

    Args:
        num_states: number of states of all processes.
        generator: a CPU generator.
        device: device of the returned numbers.
    """

    def __init__(self, num_states: int, generator: torch.Generator, device: torch.device) -> None:
        self.num_states, self.generator, self.device = num_states, generator, device

    def blank_canvas(self, length: int) -> Canvas:
        """A canvas for this process's states with free positions only."""
        num_local = len(range(self.num_states)[process_group().local_slice(self.num_states)])
        return Canvas.blank(num_local, length, self.device)

    def __call__(self, *shape: int) -> Float[Tensor, "s ..."]:
        """The next uniform numbers, ``[s, *shape]``."""
        drawn = torch.rand(self.num_states, *shape, dtype=torch.float64, generator=self.generator)
        return process_group().local_rows(drawn).to(self.device)


class Completions(NamedTuple):
    """Finished samples, and the log-probability of the tokens drawn at each position; 0 at positions without a draw."""

    x: Int[Tensor, "s g l"]
    log_probs: Float[Tensor, "s g l"]


class Trajectory(NamedTuple):
    """States from which completions are drawn, and their times.

    Attributes:
        tau: time of each state.
        t: time of the corruptions of each state's completions.
        z_tau: the states.
        first_score: log-probability of the moves before ``z_tau`` if they are scored, otherwise 0.
        first_log_probs: the student's log-probabilities at the all-mask states, see ``FirstStates``; None if the
            process has no such states.
        second_log_probs: the student's log-probabilities at the masked positions of ``z_tau``, in row-major order; None
            for whole paths.
        kind: kind of the trajectory. Corruptions for a ``path`` keep the visible tokens of ``z_tau``.
        num_moves: number of moves of whole paths; None for other kinds.
        completions: completions of whole paths; None for other kinds, whose completions are drawn in one move.
        record: record of whole paths, see ``student_moves.Branches``; None for other kinds.
    """

    tau: Float[Tensor, " s"]
    t: Float[Tensor, " s"]
    z_tau: Int[Tensor, "s l"]
    first_score: Float[Tensor, " s"]
    first_log_probs: Float[Tensor, "n v"] | None
    second_log_probs: Float[Tensor, "m v"] | None
    kind: TrajectoryKind
    num_moves: int | None = None
    completions: Completions | None = None
    record: Tensor | None = None


def one_step(
    student: DenoiserNetwork, process: Absorbing, canvas: Canvas, objective: ObjectiveConfig, draw: Uniforms
) -> Trajectory:
    """The one-step generator: every state has all masks, and equal states share one pass."""
    tau, t = map(process_group().local_rows, draw_times(draw.num_states, objective, draw.generator))
    first = first_states(student, process, canvas)
    no_score = torch.zeros(len(tau), device=draw.device)
    second_log_probs = first.log_probs[first.row[canvas.is_free]]
    return Trajectory(tau, t, first.z, no_score, first.log_probs, second_log_probs, "one-step")


def two_moves(
    student: DenoiserNetwork, process: Absorbing, canvas: Canvas, objective: ObjectiveConfig, draw: Uniforms
) -> Trajectory:
    """The paper's generator, 1 -> tau -> 0; both moves are scored (Eq. 9)."""
    tau, t = map(process_group().local_rows, draw_times(draw.num_states, objective, draw.generator))
    first, log_probs, row = first_states(student, process, canvas)
    is_visible = ~is_masked_at(draw(canvas.length), process.schedule.alpha(tau).to(draw.device)) & canvas.is_free
    state, position = is_visible.nonzero(as_tuple=True)
    rows = row[state, position]
    tokens = sample_categorical(log_probs.detach()[rows], draw(canvas.length)[is_visible])
    z_tau = first.index_put((state, position), tokens)
    score = torch.zeros(len(tau), device=draw.device).index_add(0, state, log_probs[rows, tokens])
    second_log_probs = masked_log_probs(student, process, z_tau, tau, canvas.attention_mask)
    return Trajectory(tau, t, z_tau, score, log_probs, second_log_probs, "two-moves")


def path(
    student: DenoiserNetwork, process: Absorbing, canvas: Canvas, objective: ObjectiveConfig, draw: Uniforms
) -> Trajectory:
    """States of the student's ancestral sampler of ``objective.moves`` moves; t lies within the scored move."""
    num_moves = objective.moves
    assert num_moves is not None
    move = process_group().local_rows(torch.randint(num_moves, (draw.num_states,), generator=draw.generator))
    tau = 1 - move.double() / num_moves
    fraction = torch.rand(draw.num_states, dtype=torch.float64, generator=draw.generator)
    t = tau - process_group().local_rows(fraction) / num_moves
    log_probs = first_states(student, process, canvas).log_probs
    draws = torch.rand(2, draw.num_states, canvas.length, dtype=torch.float64, generator=draw.generator)
    draws = torch.stack([process_group().local_rows(numbers) for numbers in draws]).to(draw.device)
    z_tau = states_before_a_move(student, process, move, num_moves, draws, canvas)
    no_score = torch.zeros(len(tau), device=draw.device)
    second_log_probs = masked_log_probs(student, process, z_tau, tau, canvas.attention_mask)
    return Trajectory(tau, t, z_tau, no_score, log_probs, second_log_probs, "path")
