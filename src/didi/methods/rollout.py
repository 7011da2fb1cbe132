"""What the student does in one step of Algorithm 1: it generates, and its samples are corrupted again.

``objective.trajectory`` names how it generates, one of ``TRAJECTORIES``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.categorical import sample_categorical
from didi.methods.objective_settings import ObjectiveConfig, TrajectoryKind
from didi.methods.trajectories import Completions, Trajectory, Uniforms, one_step, path, two_moves
from didi.methods.whole_path import whole_path
from didi.models.dit import DiT


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
        completion_log_probs: log-probability of each token drawn from ``z_tau`` on; 0 where none was.
        first_log_probs: the student's distribution at the all-mask state; one row for each position.
        second_log_probs: its distribution at the masked positions of ``z_tau``, row by row; none on a whole path.
        trajectory: how it was generated.
        num_moves: of a whole path; None of the others.
        reveal: of a whole path, numbers that say which position is revealed when, see ``whole_path.path_log_probs``.
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
    num_moves: int | None = None
    reveal: Float[Tensor, "s g l"] | None = None

    @property
    def log_probs_of_moves(self) -> list[Tensor]:
        """The student's distributions that are regularised: those of two moves, or of the first where it is alone."""
        is_alone = self.trajectory in ("one-step", "whole-path")
        return [self.first_log_probs] if is_alone else [self.first_log_probs, self.second_log_probs]


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


TRAJECTORIES: dict[TrajectoryKind, Callable[[DiT, int, ObjectiveConfig, Absorbing, Uniforms], Trajectory]] = {
    "one-step": one_step,
    "two-moves": two_moves,
    "path": path,
    "whole-path": whole_path,
}
"""What generates each kind of trajectory."""


def last_move(found: Trajectory, uniforms: Float[Tensor, "s l g"], process: Absorbing) -> Completions:
    """Completions of states that are one move away from them."""
    is_masked = process.is_predicted(found.z_tau)
    tokens = sample_categorical(found.second_log_probs.detach(), uniforms[is_masked])
    x = found.z_tau[:, :, None].repeat(1, 1, uniforms.shape[-1])
    x[is_masked] = tokens
    chosen = found.second_log_probs.gather(1, tokens)
    log_probs = torch.zeros(x.shape, device=x.device).index_put(is_masked.nonzero(as_tuple=True), chosen)
    return Completions(x.transpose(1, 2).contiguous(), log_probs.transpose(1, 2))


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
    num_completions, num_corruptions = objective.completions, objective.corruptions
    uniforms = draw(length, num_completions)  # unused where the completions are there already
    x, log_probs = found.completions or last_move(found, uniforms, process)
    z_t = x[:, :, None].repeat(1, 1, num_corruptions, 1)
    chance = (1 - process.schedule.alpha(found.t)).to(device)[:, None].expand(-1, length)
    if found.kind == "path":  # what is visible at tau stays so: the path goes on, it is not corrupted anew
        before = (1 - process.schedule.alpha(found.tau)).to(device)[:, None]
        chance = torch.where(process.is_predicted(found.z_tau), chance / before, 0.0)
    z_t[draw(num_completions, num_corruptions, length) < chance[:, None, None]] = process.mask_id
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
        trajectory=found.kind,
        num_moves=found.num_moves,
        reveal=found.reveal,
    )
