"""What the student does in one step of Algorithm 1: it generates, and its samples are corrupted again.

``objective.trajectory`` names how it generates: ``one_step``, ``two_moves`` 1 -> tau -> 0 (the paper), or along a
``path`` (ours). One network pass for each move serves both the sample and its log-probability, and the first pass,
which starts from the all-mask state, has a single row.

On a path the states come from the student's own sampler of ``objective.moves`` moves, and one move of it is scored, by
its state at a time within the move: what the student does at inference, and what guided sampling gives the
discriminator. (A finished sample that is corrupted to t has another distribution, unless the network is consistent:
tokens depend on the move that they came in.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.schedule import TimeDensity
from didi.methods.didi_settings import ObjectiveConfig, TrajectoryKind
from didi.models.denoiser import Denoiser
from didi.models.dit import DiT
from didi.world import world


@dataclass(frozen=True)
class Rollout:
    """One batch of trajectories; log-probabilities carry the student's gradient.

    Attributes:
        tau: time of each intermediate state.
        t: corruption time of each state.
        x: completions.
        z_t: their corruptions.
        z_tau: the intermediate states.
        first_score: log-probability of the first move.
        completion_log_probs: log-probability of each token drawn in the second move; 0 where none was.
        first_log_probs: the student's distribution at the all-mask state; one row for each position.
        second_log_probs: its distribution at the masked positions of ``z_tau``, in row-major order.
        trajectory: how it was generated.
    """

    tau: Float[Tensor, " s"]
    t: Float[Tensor, " s"]
    x: Int[Tensor, "s g l"]
    z_t: Int[Tensor, "s g c l"]
    z_tau: Int[Tensor, "s l"]
    first_score: Float[Tensor, " s"]
    completion_log_probs: Float[Tensor, "s g l"]
    first_log_probs: Float[Tensor, "l v"]
    second_log_probs: Float[Tensor, "n v"]
    trajectory: TrajectoryKind

    @property
    def log_probs_of_moves(self) -> list[Tensor]:
        """The student's distributions that are regularised: one move's of a one-step trajectory, else two moves'."""
        is_one_step = self.trajectory == "one-step"
        return [self.first_log_probs] if is_one_step else [self.first_log_probs, self.second_log_probs]


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


class Trajectory(NamedTuple):
    """States from which completions are drawn, and their times.

    Attributes:
        tau: time of each state.
        t: time of its corruptions.
        z_tau: the states.
        first_score: log-probability of the move that led there, where it is scored; else 0.
        first_log_probs: the student's log-probabilities at the all-mask state.
        second_log_probs: those at the masked positions of ``z_tau``, in row-major order.
        kind: how they were generated. Corruptions go on with the state of a ``path``, whose visible tokens stay.
    """

    tau: Float[Tensor, " s"]
    t: Float[Tensor, " s"]
    z_tau: Int[Tensor, "s l"]
    first_score: Float[Tensor, " s"]
    first_log_probs: Float[Tensor, "l v"]
    second_log_probs: Float[Tensor, "n v"]
    kind: TrajectoryKind


def one_step(student: DiT, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms) -> Trajectory:
    """The one-step generator: every state is all masks, and one pass serves all."""
    tau, t = map(world().mine, draw_times(draw.num_states, objective, draw.generator))
    log_probs = all_mask_log_probs(student, length, process, draw.device)
    z_tau = process.prior(Canvas.blank(len(tau), length, draw.device))
    none = torch.zeros(len(tau), device=draw.device)
    return Trajectory(tau, t, z_tau, none, log_probs, log_probs.repeat(len(tau), 1), "one-step")


def two_moves(student: DiT, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms) -> Trajectory:
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


def path(student: DiT, length: int, objective: ObjectiveConfig, process: Absorbing, draw: Uniforms) -> Trajectory:
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


TRAJECTORIES: dict[TrajectoryKind, Callable[[DiT, int, ObjectiveConfig, Absorbing, Uniforms], Trajectory]] = {
    "one-step": one_step,
    "two-moves": two_moves,
    "path": path,
}
"""What generates each kind of trajectory."""


def rollout(
    student: DiT,
    num_states: int,
    length: int,
    objective: ObjectiveConfig,
    process: Absorbing,
    generator: torch.Generator,
    device: torch.device,
) -> Rollout:
    """Sample trajectories and their corruptions from the student.

    Args:
        student: the few-step generator.
        num_states: intermediate states of all processes; this one's share of them, s, is what is returned.
        length: positions l.
        objective: trajectory, numbers of completions and corruptions, times.
        process: masked diffusion.
        generator: a CPU generator; all draws are float64.
        device: where the student lives.
    """
    draw = Uniforms(num_states, generator, device)
    found = TRAJECTORIES[objective.trajectory](student, length, objective, process, draw)
    z_tau, is_masked_tau = found.z_tau, process.is_predicted(found.z_tau)
    num_completions, num_corruptions = objective.completions, objective.corruptions
    tokens = sample_categorical(found.second_log_probs.detach(), draw(length, num_completions)[is_masked_tau])
    x = z_tau[:, :, None].repeat(1, 1, num_completions)
    x[is_masked_tau] = tokens
    log_probs = torch.zeros(len(z_tau), length, num_completions, device=device)
    chosen = found.second_log_probs.gather(1, tokens)
    log_probs = log_probs.index_put(is_masked_tau.nonzero(as_tuple=True), chosen)

    x = x.transpose(1, 2).contiguous()
    z_t = x[:, :, None].repeat(1, 1, num_corruptions, 1)
    chance = (1 - process.schedule.alpha(found.t)).to(device)[:, None].expand(-1, length)
    if found.kind == "path":  # what is visible at tau stays so: the path goes on, it is not corrupted anew
        before = (1 - process.schedule.alpha(found.tau)).to(device)[:, None]
        chance = torch.where(is_masked_tau, chance / before, 0.0)
    z_t[draw(num_completions, num_corruptions, length) < chance[:, None, None]] = process.mask_id
    return Rollout(
        tau=found.tau,
        t=found.t,
        x=x,
        z_t=z_t,
        z_tau=z_tau,
        first_score=found.first_score,
        completion_log_probs=log_probs.transpose(1, 2),
        first_log_probs=found.first_log_probs,
        second_log_probs=found.second_log_probs,
        trajectory=found.kind,
    )
