"""What every sampler shares: the protocol, time grids, clamped positions, the accounting of passes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import Schedule
from didi.errors import UsageError


@dataclass(frozen=True)
class StepOutput:
    """One move of a batch from time ``t_previous`` to ``t``.

    Attributes:
        z: state after the move.
        t: its time in [0, 1].
        changed: positions that the move revealed.
        student_passes: 1 for each sequence whose move needed the network, else 0.
        discriminator_passes: forward passes and backward-to-input passes of the discriminator for each sequence.
    """

    z: Int[Tensor, "b l"]
    t: float
    changed: Bool[Tensor, "b l"]
    student_passes: Int[Tensor, " b"]
    discriminator_passes: Int[Tensor, " b"]


@runtime_checkable
class Sampler(Protocol):
    """A generator of moves that ends with a state without masks."""

    def __call__(
        self, z: Int[Tensor, "b l"], times: Float[Tensor, " n"], schedule: Schedule, noise: SequenceNoise
    ) -> Iterator[StepOutput]:
        """Move ``z``, whose visible positions are kept, along the falling ``times``."""
        ...


def uniform_times(nfe: int) -> Float[Tensor, " n"]:
    """The grid 1, 1 - 1/nfe, ..., 0 of ``nfe`` moves, float64.

    Raises:
        UsageError: fewer than one move.
    """
    if nfe < 1:
        raise UsageError(f"nfe is 1 or more network passes; got {nfe}")
    return torch.linspace(1, 0, nfe + 1, dtype=torch.float64)


def alpha_at(schedule: Schedule, t: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Signal rate on a sampling path, exactly 0 at ``t = 1`` and 1 at ``t = 0``, so that the last move leaves no mask.

    Schedules such as the geometric one only come close to both ends.
    """
    if t >= 1:
        return torch.zeros_like(t)
    return torch.ones_like(t) if t <= 0 else schedule.alpha(t)


def shared_rows(z: Int[Tensor, "b l"]) -> Int[Tensor, "r l"]:
    """One row if all rows of the batch are equal (as the all-mask state is), else the batch itself."""
    return z[:1] if bool((z == z[:1]).all()) else z
