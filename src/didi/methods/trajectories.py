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
    z: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    process: Absorbing,
    attention_mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "n v"]:
    """Log-probabilities at the masked positions of ``z``, in row-major order."""
    features = denoiser.features(z, process.noise_level(denoiser, t.to(z.device)), attention_mask)
    return process.log_probs(denoiser.head(features[process.is_predicted(z)]))


class FirstStates(NamedTuple):
    """The states at t = 1, in which all free positions are masked, and what a network predicts there.

    Attributes:
        z: the states.
        log_probs: log-probabilities, a row for each position where all states are alike, else a row for each free
            position of each state, in row-major order.
        row: of ``log_probs``, for each position of each state; read at free positions.
    """

    z: Int[Tensor, "s l"]
    log_probs: Float[Tensor, "n v"]
    row: Int[Tensor, "s l"]


def first_states(denoiser: Denoiser, canvas: Canvas, process: Absorbing) -> FirstStates:
    """The states before the first move; those that are alike go through the network once."""
    z, device = process.prior(canvas), canvas.tokens.device
    if canvas.is_all_free:
        log_probs = masked_log_probs(denoiser, z[:1], torch.ones(1, dtype=torch.float64), process)
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
    move: Int[Tensor, " s"],
    num_moves: int,
    uniforms: Float[Tensor, "k s l"],
    process: Absorbing,
    canvas: Canvas | None = None,
) -> Int[Tensor, "s l"]:
    """States of the student's own ancestral sampler of ``num_moves`` even moves, each before the move numbered.

    Args:
        student: the few-step generator.
        move: for each state, the number of moves that lead to it.
        num_moves: moves of the whole path.
        uniforms: which positions are revealed when, which tokens they get, and the latent codes of each move where the
            student reads some; float64, where the student lives.
        process: masked diffusion.
        canvas: which positions are free and real; None where all are.
    """
    (reveal, draw, *of_codes), device, number_of_codes = uniforms, uniforms.device, num_codes(student)
    canvas = canvas or Canvas.blank(len(reveal), reveal.shape[1], device)
    z, is_alike = process.prior(canvas), canvas.is_all_free and not number_of_codes
    # Several processes make as many passes each, of no rows if need be: sharded weights are gathered in them.
    for number in range(num_moves if process_group().size > 1 else int(move.max())):
        t, s = (torch.tensor([1 - done / num_moves], dtype=torch.float64) for done in (number, number + 1))
        rows = (move > number).nonzero().squeeze(1).to(device)
        is_revealed = process.is_predicted(z[rows]) & ~is_masked_at(
            reveal[rows], process.schedule.alpha(s).to(device).expand(len(rows))
        )
        read = rows[:1] if number == 0 and is_alike else rows  # the first state is then one for all
        inputs = z[:1] if number == 0 and is_alike else z[rows]
        level = process.noise_level(student, t.to(device).expand(len(inputs)))
        mask = canvas.rows(read).attention_mask
        codes = codes_from(of_codes[number][rows], number_of_codes) if number_of_codes else None
        features = features_with(student, inputs, level, mask, codes).expand(len(rows), -1, -1)[is_revealed]
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

    def blank(self, length: int) -> Canvas:
        """The canvas of this process's states where all positions are free."""
        return Canvas.blank(
            len(range(self.num_states)[process_group().local_slice(self.num_states)]), length, self.device
        )

    def __call__(self, *shape: int) -> Float[Tensor, "s ..."]:
        """The next ones, ``[s, *shape]``."""
        drawn = torch.rand(self.num_states, *shape, dtype=torch.float64, generator=self.generator)
        return process_group().local_rows(drawn).to(self.device)


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
        first_log_probs: the student's log-probabilities at the all-mask states, see ``FirstStates``; None in a process
            without them.
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
    first_log_probs: Float[Tensor, "n v"] | None
    second_log_probs: Float[Tensor, "m v"] | None
    kind: TrajectoryKind
    num_moves: int | None = None
    completions: Completions | None = None
    record: Tensor | None = None


def one_step(
    student: DenoiserNetwork, canvas: Canvas, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms
) -> Trajectory:
    """The one-step generator: every state is all masks, and one pass serves all."""
    tau, t = map(process_group().local_rows, draw_times(draw.num_states, objective, draw.generator))
    first = first_states(student, canvas, process)
    none = torch.zeros(len(tau), device=draw.device)
    of_each = first.log_probs[first.row[canvas.is_free]]
    return Trajectory(tau, t, first.z, none, first.log_probs, of_each, "one-step")


def two_moves(
    student: DenoiserNetwork, canvas: Canvas, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms
) -> Trajectory:
    """The paper's generator, 1 -> tau -> 0, whose first move is scored as well (Eq. 9)."""
    tau, t = map(process_group().local_rows, draw_times(draw.num_states, objective, draw.generator))
    first, log_probs, row = first_states(student, canvas, process)
    is_visible = ~is_masked_at(draw(canvas.length), process.schedule.alpha(tau).to(draw.device)) & canvas.is_free
    state, position = is_visible.nonzero(as_tuple=True)
    rows = row[state, position]
    tokens = sample_categorical(log_probs.detach()[rows], draw(canvas.length)[is_visible])
    z_tau = first.index_put((state, position), tokens)
    score = torch.zeros(len(tau), device=draw.device).index_add(0, state, log_probs[rows, tokens])
    of_second = masked_log_probs(student, z_tau, tau, process, canvas.attention_mask)
    return Trajectory(tau, t, z_tau, score, log_probs, of_second, "two-moves")


def path(
    student: DenoiserNetwork, canvas: Canvas, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms
) -> Trajectory:
    """States of the student's own sampler of ``objective.moves`` moves (ours); t lies within the scored move."""
    num_moves = objective.moves
    assert num_moves is not None
    move = process_group().local_rows(torch.randint(num_moves, (draw.num_states,), generator=draw.generator))
    tau = 1 - move.double() / num_moves
    t = (
        tau
        - process_group().local_rows(torch.rand(draw.num_states, dtype=torch.float64, generator=draw.generator))
        / num_moves
    )
    log_probs = first_states(student, canvas, process).log_probs
    draws = torch.rand(2, draw.num_states, canvas.length, dtype=torch.float64, generator=draw.generator)
    draws = torch.stack([process_group().local_rows(one) for one in draws]).to(draw.device)
    z_tau = states_before_a_move(student, move, num_moves, draws, process, canvas)
    none = torch.zeros(len(tau), device=draw.device)
    of_second = masked_log_probs(student, z_tau, tau, process, canvas.attention_mask)
    return Trajectory(tau, t, z_tau, none, log_probs, of_second, "path")
