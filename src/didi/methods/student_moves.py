"""What a whole path asks of the process: the moves of the student's own sampler, drawn and scored again."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.methods.trajectories import Completions, Uniforms
from didi.models.networks import DenoiserNetwork


class Branches(NamedTuple):
    """Paths that are one up to a state and independent from there.

    Attributes:
        z: the states where they branch.
        first_score: log-probability of the moves that led there, with the network's gradient.
        completions: the finished samples, and what the moves since give to their log-probability at each position.
        record: what ``StudentMoves.path_log_probs`` needs to score the paths again.
    """

    z: Int[Tensor, "s l"]
    first_score: Float[Tensor, " s"]
    completions: Completions
    record: Tensor


@runtime_checkable
class StudentMoves(Protocol):
    """A network's own sampler of evenly spaced moves, for one kind of process."""

    @classmethod
    def of(cls, network: DenoiserNetwork, num_moves: int, canvas: Canvas, process: Process) -> "StudentMoves":
        """The sampler of so many moves of the sequences of a canvas."""
        ...

    @property
    def first_log_probs(self) -> Float[Tensor, "n v"] | None:
        """The network's log-probabilities at the first states, see ``FirstStates``; None where these are random."""
        ...

    def branches(self, branch: int, num_completions: int, draw: Uniforms) -> Branches:
        """Paths of the sampler, each state with ``num_completions`` of them from the move ``branch`` on.

        Args:
            branch: moves up to the state where paths branch; with all moves it is the finished sample.
            num_completions: g, paths of each state.
            draw: uniform numbers of each state.
        """
        ...

    def path_log_probs(self, x: Int[Tensor, "s g l"], record: Tensor) -> Float[Tensor, "s g"]:
        """Log-probability of whole paths under the network, which need not be the one that drew them.

        Args:
            x: the finished samples.
            record: of ``Branches``.
        """
        ...


def move_times(num_moves: int) -> Float[Tensor, " k"]:
    """Times before each of so many even moves, and 0 after the last; float64."""
    return 1 - torch.arange(num_moves + 1, dtype=torch.float64) / num_moves
