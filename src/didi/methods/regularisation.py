"""The regularisers of App. F.3: divergence from the teacher and entropy bonus, at one or both moves."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.categorical import divergence, entropy
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.rollout import Rollout
from didi.methods.trajectories import first_states, masked_log_probs
from didi.models.networks import DenoiserNetwork
from didi.process_group import process_group


class TeacherLogProbs:
    """The teacher's log-probabilities at the states and positions where a rollout has the student's.

    Args:
        process: process of the student; a call needs masked diffusion.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._first: Tensor | None = None  # cache for the all-mask state of sequences without given positions

    @torch.no_grad()
    def __call__(self, teacher: DenoiserNetwork, drawn: Rollout) -> list[Float[Tensor, "_ v"]]:
        """Log-probabilities for each move of ``drawn.log_probs_of_moves``."""
        process, canvas = cast(Absorbing, self._process), drawn.canvas
        first = self._first
        if first is None:
            first = first_states(teacher, process, canvas).log_probs
            self._first = first if canvas.is_all_free else None  # then all steps have the same first state
        log_probs = [first]
        if len(drawn.log_probs_of_moves) > 1:
            log_probs.append(masked_log_probs(teacher, process, drawn.z_tau, drawn.tau, canvas.attention_mask))
        return log_probs


def regularisation(
    student: Sequence[Float[Tensor, "_ v"]], teacher: Sequence[Float[Tensor, "_ v"]], objective: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted divergence minus weighted entropy, each a mean over positions and a sum over moves; and metrics.

    Args:
        student: log-probabilities of each move, with gradient; empty if there is no move to regularise.
        teacher: the teacher's log-probabilities at the same positions; empty if the divergence has weight 0.
        objective: weights and direction of the divergence.
    """
    if not student:
        return torch.zeros(()), {}
    with torch.set_grad_enabled(bool(objective.entropy_weight)):  # with weight 0 it is only logged
        entropies = [process_group().local_term_of_mean(entropy(log_probs)) for log_probs in student]
    metrics = {"entropy": entropies[-1].detach()}
    loss = -objective.entropy_weight * torch.stack(entropies).sum()
    if objective.divergence_weight:
        divergences = [
            process_group().local_term_of_mean(divergence(objective.divergence, teacher_move, student_move))
            for teacher_move, student_move in zip(teacher, student, strict=True)
        ]
        metrics["divergence"] = torch.stack(divergences).sum().detach()
        loss = loss + objective.divergence_weight * torch.stack(divergences).sum()
    return loss, metrics
