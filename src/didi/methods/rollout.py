"""Rollout of the student in one step of Algorithm 1: generate samples, and corrupt them again.

``objective.trajectory`` names the kind of trajectory, a key of ``TRAJECTORIES``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.methods.objective_settings import ObjectiveConfig, TrajectoryKind
from didi.methods.trajectories import Completions, Trajectory, Uniforms, one_step, path, two_moves
from didi.methods.whole_path import whole_path
from didi.models.networks import DenoiserNetwork


@dataclass(frozen=True)
class Rollout:
    """One batch of trajectories; log-probabilities carry the student's gradient.

    Attributes:
        tau: time of each intermediate state.
        t: corruption time of each state.
        x: completions.
        z_t: corruptions of ``x``.
        z_tau: intermediate states. For whole paths: the states where paths branch, or, with one completion, the
            finished samples.
        first_score: log-probability of the first move; for whole paths, of all moves before ``z_tau``.
        completion_log_probs: log-probability of the tokens drawn at each position after ``z_tau``; 0 at positions
            without a draw.
        first_log_probs: the student's log-probabilities at the all-mask states, see ``trajectories.FirstStates``; None
            without such states.
        second_log_probs: the student's log-probabilities at the masked positions of ``z_tau``, in row-major order; None
            for whole paths.
        canvas: masks of the free and real positions of each sequence.
        trajectory: kind of the trajectories.
        num_moves: number of moves of whole paths; None for other trajectories.
        record: record of whole paths, for ``whole_path.path_log_probs``; None for other trajectories.
    """

    tau: Float[Tensor, " s"]
    t: Float[Tensor, " s"]
    x: Int[Tensor, "s g l"]
    z_t: Int[Tensor, "s g c l"]
    z_tau: Int[Tensor, "s l"]
    first_score: Float[Tensor, " s"]
    completion_log_probs: Float[Tensor, "s g l"]
    first_log_probs: Float[Tensor, "n v"] | None
    second_log_probs: Float[Tensor, "m v"] | None
    canvas: Canvas
    trajectory: TrajectoryKind
    num_moves: int | None = None
    record: Tensor | None = None

    @property
    def corruption_canvas(self) -> Canvas:
        """The canvas of ``z_t``, one row for each corruption."""
        return self.canvas.repeat_interleave(self.z_t.shape[1] * self.z_t.shape[2])

    @property
    def log_probs_of_moves(self) -> list[Tensor]:
        """Log-probabilities that are regularised: of the first move, and of the second if it has its own pass."""
        has_one_pass = self.trajectory in ("one-step", "whole-path")
        moves = [self.first_log_probs] if has_one_pass else [self.first_log_probs, self.second_log_probs]
        return [log_probs for log_probs in moves if log_probs is not None]


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process.

    Attributes:
        step: step of the run.
        micro_batch: number of the micro-batch within the step.
        rollout: the student's trajectories; None in guidance steps.
    """

    step: int
    micro_batch: int
    rollout: Rollout | None = None


TRAJECTORIES: dict[TrajectoryKind, Callable[[DenoiserNetwork, Any, Canvas, ObjectiveConfig, Uniforms], Trajectory]] = {
    "one-step": one_step,
    "two-moves": two_moves,
    "path": path,
    "whole-path": whole_path,
}
"""Generators of trajectories by kind; all kinds but ``whole-path`` need masked diffusion."""


def last_move(trajectory: Trajectory, uniforms: Float[Tensor, "s l g"], process: Process) -> Completions:
    """Draw all masked tokens of ``z_tau`` in one move of masked diffusion."""
    assert trajectory.second_log_probs is not None
    is_masked = process.is_predicted(trajectory.z_tau)
    tokens = sample_categorical(trajectory.second_log_probs.detach(), uniforms[is_masked])
    x = trajectory.z_tau[:, :, None].repeat(1, 1, uniforms.shape[-1])
    x[is_masked] = tokens
    chosen = trajectory.second_log_probs.gather(1, tokens)
    log_probs = torch.zeros(x.shape, device=x.device).index_put(is_masked.nonzero(as_tuple=True), chosen)
    return Completions(x.transpose(1, 2).contiguous(), log_probs.transpose(1, 2))


def rollout(
    student: DenoiserNetwork,
    process: Process,
    num_states: int,
    length: int,
    objective: ObjectiveConfig,
    generator: torch.Generator,
    device: torch.device,
    canvas: Canvas | None = None,
) -> Rollout:
    """Sample trajectories and their corruptions from the student.

    Args:
        student: the few-step generator.
        process: process of the student; see ``TRAJECTORIES``.
        num_states: number of intermediate states of all processes; returns this process's share of them, s.
        length: positions l of a sequence; ignored if there is a ``canvas``.
        objective: trajectory, numbers of completions and corruptions, density of times.
        generator: a CPU generator; all draws are float64.
        device: device of the student.
        canvas: canvas of this process's states, on ``device``; None if all positions are free.
    """
    draw = Uniforms(num_states, generator, device)
    if canvas is None:
        canvas = draw.blank_canvas(length)
    length = canvas.length
    trajectory = TRAJECTORIES[objective.trajectory](student, process, canvas, objective, draw)
    num_completions, num_corruptions = objective.completions, objective.corruptions
    uniforms = draw(length, num_completions)  # drawn, but not used, if the trajectory has completions
    x, log_probs = trajectory.completions or last_move(trajectory, uniforms, process)
    draws = draw(num_completions, num_corruptions, length, process.draws_per_position)
    z_t = canvas.clamped(_corrupted(x, trajectory, draws, process))
    return Rollout(
        tau=trajectory.tau,
        t=trajectory.t,
        x=x,
        z_t=z_t,
        z_tau=trajectory.z_tau,
        first_score=trajectory.first_score,
        completion_log_probs=log_probs,
        first_log_probs=trajectory.first_log_probs,
        second_log_probs=trajectory.second_log_probs,
        canvas=canvas,
        trajectory=trajectory.kind,
        num_moves=trajectory.num_moves,
        record=trajectory.record,
    )


def _corrupted(
    x: Int[Tensor, "s g l"], trajectory: Trajectory, draws: Float[Tensor, "s g c l k"], process: Process
) -> Int[Tensor, "s g c l"]:
    """Corrupt completions to times t; on a ``path`` only positions that are masked at tau may be masked at t."""
    shape, t = draws.shape[:-1], trajectory.t.to(x.device)
    clean = x[:, :, None].expand(shape)
    if trajectory.kind == "path":
        prob_masked_tau = 1 - process.schedule.alpha(trajectory.tau.to(x.device))
        prob_masked_t = (1 - process.schedule.alpha(t)) / prob_masked_tau  # given a mask at tau
        stays_masked = draws[..., 0] < prob_masked_t[:, None, None, None]
        is_masked = process.is_predicted(trajectory.z_tau)[:, None, None] & stays_masked
        return torch.where(is_masked, cast(int, process.mask_id), clean)
    times = t.repeat_interleave(shape[1] * shape[2])
    return process.corrupt(clean.flatten(0, 2), times, draws.flatten(0, 2)).view(shape)
