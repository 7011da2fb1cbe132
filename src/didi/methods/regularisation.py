"""The regularisers of App. F.3: divergence from the teacher and entropy bonus at every move that is read."""

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
    """The teacher's log-probabilities where the student's were read.

    Args:
        process: of the student; masked diffusion where there is anything to regularise.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._first: Tensor | None = None  # of sequences that are all alike

    @torch.no_grad()
    def __call__(self, teacher: DenoiserNetwork, drawn: Rollout) -> list[Float[Tensor, "_ v"]]:
        """Those of each move of ``drawn.log_probs_of_moves``."""
        process, canvas = cast(Absorbing, self._process), drawn.canvas
        first = self._first
        if first is None:
            first = first_states(teacher, canvas, process).log_probs
            self._first = first if canvas.is_all_free else None  # at one all-mask state they never change
        found = [first]
        if len(drawn.log_probs_of_moves) > 1:
            found.append(masked_log_probs(teacher, drawn.z_tau, drawn.tau, process, canvas.attention_mask))
        return found


def regularisation(
    student: Sequence[Float[Tensor, "_ v"]], teacher: Sequence[Float[Tensor, "_ v"]], objective: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted divergence minus weighted entropy, each the sum over the moves of its mean over positions, and figures.

    Args:
        student: log-probabilities of each move, with gradient; none where no state is common to all paths.
        teacher: the teacher's at the same positions; empty where the divergence has no weight.
        objective: weights and direction.
    """
    if not student:
        return torch.zeros(()), {}
    with torch.set_grad_enabled(bool(objective.entropy_weight)):  # without a bonus it is only logged
        entropies = [process_group().local_term_of_mean(entropy(log_probs)) for log_probs in student]
    figures = {"entropy": entropies[-1].detach()}
    loss = -objective.entropy_weight * torch.stack(entropies).sum()
    if objective.divergence_weight:
        divergences = [
            process_group().local_term_of_mean(divergence(objective.divergence, of_teacher, log_probs))
            for of_teacher, log_probs in zip(teacher, student, strict=True)
        ]
        figures["divergence"] = torch.stack(divergences).sum().detach()
        loss = loss + objective.divergence_weight * torch.stack(divergences).sum()
    return loss, figures
