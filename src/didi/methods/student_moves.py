"""Interface of the student's ancestral sampler for one process: draw whole paths, and score given paths."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.methods.trajectories import Completions, Uniforms
from didi.models.networks import DenoiserNetwork


class Branches(NamedTuple):
    """Paths that share their moves up to a state, the branch, and have independent moves after it.

    Attributes:
        z: states at the branch.
        first_score: log-probability of the moves before the branch, with the network's gradient.
        completions: finished samples, and the log-probability of the moves after the branch at each position.
        record: data from which ``StudentMoves.path_log_probs`` scores the paths again.
    """

    z: Int[Tensor, "s l"]
    first_score: Float[Tensor, " s"]
    completions: Completions
    record: Tensor


@runtime_checkable
class StudentMoves(Protocol):
    """A network's ancestral sampler with evenly spaced moves, for one kind of process."""

    @classmethod
    def of(cls, network: DenoiserNetwork, process: Process, num_moves: int, canvas: Canvas) -> "StudentMoves":
        """The sampler of ``num_moves`` moves for the sequences of ``canvas``."""
        ...

    @property
    def first_log_probs(self) -> Float[Tensor, "n v"] | None:
        """The network's log-probabilities at the initial states, see ``FirstStates``; None if these are random."""
        ...

    def branches(self, branch: int, num_completions: int, draw: Uniforms) -> Branches:
        """Draw paths: one prefix of ``branch`` moves for each state, and ``num_completions`` continuations of it.

        Args:
            branch: number of moves before the branch; all moves if the branch is the finished sample.
            num_completions: g, number of paths of each state.
            draw: source of uniform numbers for each state.
        """
        ...

    def path_log_probs(self, x: Int[Tensor, "s g l"], record: Tensor) -> Float[Tensor, "s g"]:
        """Log-probability of whole paths under the network; another network may have drawn the paths.

        Args:
            x: finished samples of the paths.
            record: ``Branches.record`` of the paths.
        """
        ...


def move_times(num_moves: int) -> Float[Tensor, " k"]:
    """Times before each of ``num_moves`` equal moves, followed by 0; float64."""
    return 1 - torch.arange(num_moves + 1, dtype=torch.float64) / num_moves
