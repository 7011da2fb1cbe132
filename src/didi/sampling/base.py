"""The protocol of samplers, time grids, and functions that several samplers use."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.arguments import one_of, whole_number
from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import Schedule
from didi.errors import UsageError
from didi.models.denoiser import Denoiser
from didi.models.latent import features_with
from didi.process_group import to_device
from didi.sampling.token_distribution import TokenDistribution


@dataclass(frozen=True)
class StepOutput:
    """One move of a batch.

    Attributes:
        z: state after the move.
        t: time of ``z``, in [0, 1].
        is_changed: positions whose token the move changed.
        network_passes: network passes of each sequence in this move, 0 if the move did not need the network.
        discriminator_passes: forward and backward-to-input passes of the discriminator for each sequence in this move.
    """

    z: Int[Tensor, "b l"]
    t: float
    is_changed: Bool[Tensor, "b l"]
    network_passes: Int[Tensor, " b"]
    discriminator_passes: Int[Tensor, " b"]


@runtime_checkable
class Sampler(Protocol):
    """A generator of moves from the prior of a process to clean tokens."""

    @property
    def token_distribution(self) -> TokenDistribution:
        """Temperature and top-p; ``draw_check.finish`` is called after a batch."""
        ...

    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """Fill the free positions of a canvas; given tokens stay.

        Args:
            canvas: given tokens and free positions, on the device of the network.
            times: decreasing times from 1 to 0, one more than moves; float64 on the CPU. Samplers without a time grid
                do not follow them.
            noise: random numbers of the sequences, on the device of ``canvas``.

        Yields:
            The state after each move.
        """
        ...


MAX_NFE = 2**16
"""Largest number of moves of a time grid."""

ROWS = 1024
"""Number of positions whose logits exist at the same time, in samplers whose moves can change every position."""

Grid = Literal["uniform", "cosine"]


def time_grid(nfe: int, grid: Grid = "uniform") -> Float[Tensor, " n"]:
    """Decreasing times of ``nfe`` moves, from 1 to 0, float64.

    Args:
        nfe: number of moves, 1 to ``MAX_NFE``.
        grid: ``uniform`` has even steps; ``cosine`` is cos(pi k / (2 nfe)), whose moves are small at first, while few
            tokens are visible, and large at the end (MaskGIT, Chang et al. 2022, https://arxiv.org/abs/2202.04200).

    Raises:
        UsageError: ``nfe`` is out of range, or the grid is unknown.
    """
    nfe = checked_nfe(nfe)
    grid = one_of("a time grid", grid, get_args(Grid))
    even = torch.linspace(0, 1, nfe + 1, dtype=torch.float64)
    times = 1 - even if grid == "uniform" else torch.cos(math.pi / 2 * even)
    times[-1] = 0
    return times


def checked_nfe(nfe: int) -> int:
    """The number of moves of a time grid.

    Raises:
        UsageError: it is not a whole number in [1, ``MAX_NFE``].
    """
    number = whole_number("nfe", nfe)
    if not 1 <= number <= MAX_NFE:
        hint = ": first-hitting sampling is the limit of more moves" if number > MAX_NFE else ""
        raise UsageError(f"nfe lies in [1, {MAX_NFE}]; got {number}{hint}")
    return number


def given_times(times: Sequence[float]) -> Float[Tensor, " n"]:
    """Times from a user, as a tensor; they decrease strictly from 1 to 0.

    Raises:
        UsageError: they do not, or there are more than ``MAX_NFE`` moves.
    """
    if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not all(b < a for a, b in pairwise(times)):
        raise UsageError(f"times fall from 1 to 0, such as 1 0.7 0.3 0; got {' '.join(f'{t:g}' for t in times)}")
    checked_nfe(len(times) - 1)
    return torch.tensor(times, dtype=torch.float64)


def refuse_equal_rates(schedule: Schedule, times: Float[Tensor, " n"]) -> None:
    """Refuse successive times with equal signal rates, between which no move is possible.

    Raises:
        UsageError: two signal rates are equal in float64, such as at 1e-17 and 0 under the log-linear schedule.
    """
    rates = path_alphas(schedule, times)
    for number in (rates.diff() <= 0).nonzero().flatten().tolist()[:1]:
        t, s = times[number : number + 2].tolist()
        raise UsageError(
            f"signal rates of successive times differ; those of {t:g} and {s:g} are equal in float64: leave one of the "
            "two times out"
        )


def alpha_at(schedule: Schedule, t: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Signal rate on a sampling path, exactly 0 at ``t = 1`` and 1 at ``t = 0``, so that the last move leaves no mask.

    Schedules such as the geometric one reach these values only approximately.
    """
    if t >= 1:
        return torch.zeros_like(t)
    return torch.ones_like(t) if t <= 0 else schedule.alpha(t)


def path_alphas(schedule: Schedule, times: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Signal rates at all times of a path, float64 on the CPU; see ``alpha_at``."""
    return torch.stack([alpha_at(schedule, t) for t in times])


def open_positions(process: Process, z: Int[Tensor, "b l"], canvas: Canvas) -> Bool[Tensor, "b l"]:
    """Positions that are still to be sampled: the free ones that the process predicts.

    A given or padding token that equals [MASK] is not one of them.
    """
    return canvas.is_free & process.is_predicted(z)


def shared_rows(z: Int[Tensor, "b l"], canvas: Canvas) -> Int[Tensor, "r l"]:
    """One row if all rows of the batch are equal (as in the all-mask state), else the batch itself."""
    return z[:1] if not canvas.has_padding and bool((z == z[:1]).all()) else z


def features_at(
    denoiser: Denoiser,
    process: Process,
    z: Int[Tensor, "b l"],
    t: Float[Tensor, "*b"],
    attention_mask: Bool[Tensor, "b l"] | None = None,
    codes: Int[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b l d"]:
    """Trunk features of every row at ``t``, one time for all rows or one for each; see ``latent.features_with``."""
    return features_with(denoiser, z, noise_levels(denoiser, process, t, z), attention_mask, codes)


def noise_levels(
    denoiser: Denoiser, process: Process, t: Float[Tensor, "*b"], z: Int[Tensor, "r l"]
) -> Float[Tensor, " r"] | None:
    """Noise levels of the rows of ``z`` at ``t``, one time for all or one for each; None if the network reads none."""
    return process.noise_level(denoiser, to_device(t, z.device).expand(len(z)))
