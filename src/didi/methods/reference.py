"""A copy of an earlier student as reference of the rewards, ``objective.reference_steps``; not in the paper."""

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion import Process
from didi.methods.frozen_copy import FrozenCopy
from didi.methods.objective_settings import ObjectiveConfig
from didi.methods.rollout import Rollout
from didi.methods.whole_path import path_log_probs
from didi.models.networks import DenoiserNetwork


class Reference(FrozenCopy):
    """A copy of the student that is renewed every ``num_steps`` updates.

    Args:
        student: network to copy; its frozen weights are shared, not copied.
        process: process of the student.
        objective: objective with whole paths.

    Attributes:
        network: the copy.
        num_steps: number of student updates between copies.
    """

    def __init__(self, student: DenoiserNetwork, process: Process, objective: ObjectiveConfig) -> None:
        super().__init__(student, "objective.reference_steps")
        self._process, self._initial_state = process, objective.initial_state
        self.num_steps = objective.reference_steps
        self._reads_budgets = bool(objective.budgets)

    @torch.no_grad()
    def log_ratio(self, drawn: Rollout) -> Float[Tensor, "s g"]:
        """Log-probability of whole paths under the student, minus that under the reference; nats.

        Args:
            drawn: whole paths with the student's log-probabilities.
        """
        assert drawn.num_moves is not None
        assert drawn.record is not None
        student_log_probs = drawn.first_score[:, None] + drawn.completion_log_probs.sum(-1)
        network = self.network.at_budget(drawn.num_moves) if self._reads_budgets else self.network
        path = drawn.x, drawn.record, drawn.num_moves
        return student_log_probs - path_log_probs(network, self._process, *path, drawn.canvas, self._initial_state)
