"""What the student does in one step of Algorithm 1: it generates, and its samples are corrupted again.

``objective.trajectory`` names how it generates, one of ``TRAJECTORIES``.
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
        z_t: their corruptions.
        z_tau: the intermediate states; on a whole path those where it branches, or with one completion its last.
        first_score: log-probability of the first move; on a whole path, of all moves to ``z_tau``.
        completion_log_probs: log-probability of what was drawn at each position from ``z_tau`` on; 0 where nothing was.
        first_log_probs: the student's distribution at the all-mask states, see ``trajectories.FirstStates``; None in a
            process without such states.
        second_log_probs: its distribution at the masked positions of ``z_tau``, row by row; None on a whole path.
        canvas: which positions of each sequence are free and real.
        trajectory: how it was generated.
        num_moves: of a whole path; None of the others.
        record: of a whole path, for ``whole_path.path_log_probs``.
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
    def of_corruptions(self) -> Canvas:
        """The canvas of ``z_t`` as rows."""
        return self.canvas.repeat_interleave(self.z_t.shape[1] * self.z_t.shape[2])

    @property
    def log_probs_of_moves(self) -> list[Tensor]:
        """The student's distributions that are regularised: those of two moves, or of the first where it is alone."""
        is_alone = self.trajectory in ("one-step", "whole-path")
        found = [self.first_log_probs] if is_alone else [self.first_log_probs, self.second_log_probs]
        return [one for one in found if one is not None]


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process.

    Attributes:
        step, number: of the step and of the micro-batch.
        rollout: the student's trajectories; None in lessons for guidance.
    """

    step: int
    number: int
    rollout: Rollout | None = None


TRAJECTORIES: dict[TrajectoryKind, Callable[[DenoiserNetwork, Canvas, ObjectiveConfig, Any, Uniforms], Trajectory]] = {
    "one-step": one_step,
    "two-moves": two_moves,
    "path": path,
    "whole-path": whole_path,
}
"""What generates each kind of trajectory; all but whole paths are of masked diffusion alone."""


def last_move(found: Trajectory, uniforms: Float[Tensor, "s l g"], process: Process) -> Completions:
    """Completions of states of masked diffusion that are one move away from them."""
    assert found.second_log_probs is not None
    is_masked = process.is_predicted(found.z_tau)
    tokens = sample_categorical(found.second_log_probs.detach(), uniforms[is_masked])
    x = found.z_tau[:, :, None].repeat(1, 1, uniforms.shape[-1])
    x[is_masked] = tokens
    chosen = found.second_log_probs.gather(1, tokens)
    log_probs = torch.zeros(x.shape, device=x.device).index_put(is_masked.nonzero(as_tuple=True), chosen)
    return Completions(x.transpose(1, 2).contiguous(), log_probs.transpose(1, 2))


def rollout(
    student: DenoiserNetwork,
    num_states: int,
    length: int,
    objective: ObjectiveConfig,
    process: Process,
    generator: torch.Generator,
    device: torch.device,
    canvas: Canvas | None = None,
) -> Rollout:
    """Sample trajectories and their corruptions from the student.

    Args:
        student: the few-step generator.
        num_states: intermediate states of all processes; this one's share of them, s, is what is returned.
        length: positions l; those of ``canvas`` where it is given.
        objective: trajectory, numbers of completions and corruptions, times.
        process: of the student; see ``TRAJECTORIES``.
        generator: a CPU generator; all draws are float64.
        device: where the student lives.
        canvas: of this process's states, on ``device``; None where all positions are free.
    """
    draw = Uniforms(num_states, generator, device)
    if canvas is None:
        canvas = draw.blank(length)
    length = canvas.length
    found = TRAJECTORIES[objective.trajectory](student, canvas, objective, process, draw)
    num_completions, num_corruptions = objective.completions, objective.corruptions
    uniforms = draw(length, num_completions)  # unused where the completions are there already
    x, log_probs = found.completions or last_move(found, uniforms, process)
    draws = draw(num_completions, num_corruptions, length, process.draws_per_position)
    z_t = canvas.clamped(_corrupted(x, found, draws, process))
    return Rollout(
        tau=found.tau,
        t=found.t,
        x=x,
        z_t=z_t,
        z_tau=found.z_tau,
        first_score=found.first_score,
        completion_log_probs=log_probs,
        first_log_probs=found.first_log_probs,
        second_log_probs=found.second_log_probs,
        canvas=canvas,
        trajectory=found.kind,
        num_moves=found.num_moves,
        record=found.record,
    )


def _corrupted(
    x: Int[Tensor, "s g l"], found: Trajectory, draws: Float[Tensor, "s g c l k"], process: Process
) -> Int[Tensor, "s g c l"]:
    """Completions corrupted to their times t; on a ``path`` the state at tau goes on: what is visible there stays."""
    shape, t = draws.shape[:-1], found.t.to(x.device)
    clean = x[:, :, None].expand(shape)
    if found.kind == "path":
        before = 1 - process.schedule.alpha(found.tau.to(x.device))
        chance = (1 - process.schedule.alpha(t)) / before
        is_masked = process.is_predicted(found.z_tau)[:, None, None] & (draws[..., 0] < chance[:, None, None, None])
        return torch.where(is_masked, cast(int, process.mask_id), clean)
    times = t.repeat_interleave(shape[1] * shape[2])
    return process.corrupt(clean.flatten(0, 2), times, draws.flatten(0, 2)).view(shape)
