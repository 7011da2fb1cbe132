"""How to sample: one record for the API, the command line and the evaluation."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from didi.diffusion.categorical import Precision
from didi.models.bundle import Role
from didi.sampling.base import Grid, given_times, time_grid
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.departure import Departure
from didi.sampling.guided import Guidance
from didi.sampling.remasking import Remasking

SamplerName = str
"""A name in ``didi.sampling.SAMPLERS``."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample; every field but the batch's is recorded with the results.

    The settings from ``guidance`` on belong to some samplers: None is the sampler's own default, and a value that the
    chosen sampler does not read is refused.

    Attributes:
        sampler: a name in ``didi.sampling.SAMPLERS``: ``ancestral`` (Eq. 10; left to right for an autoregressive
            network), ``guided`` (Algorithm 2), ``first-hitting`` (exact, one token a pass), ``tau-leaping``,
            ``confidence``, ``entropy-bounded`` or ``remasking``.
        role: which network; the student where there is one, by default.
        precision: of the draws.
        temperature: divides the logits; 1 is exact.
        top_p: share of a token's probability that is kept, the likeliest tokens first; 1 is exact.
        grid: how the times of the moves are spaced.
        times: the times themselves, from 1 down to 0, instead of ``nfe`` and ``grid``.
        batch_size: sequences at a time; changes speed and memory only.
        is_whole_batch: ancestral sampling runs the network on whole batches only, for networks that are compiled.
        guidance: settings of ``guided``.
        order: which positions ``confidence`` reveals first.
        entropy_bound: nats that ``entropy-bounded`` may draw at once beyond the largest entropy.
        remask: settings of ``remasking``.
    """

    sampler: SamplerName = "ancestral"
    role: Role | None = None
    precision: Precision = "float64"
    temperature: float = 1.0
    top_p: float = 1.0
    grid: Grid = "uniform"
    times: tuple[float, ...] = ()
    batch_size: int = 32
    is_whole_batch: bool = False
    guidance: Guidance | None = None
    order: ConfidenceOrder | None = None
    entropy_bound: float | None = None
    remask: Remasking | None = None

    @property
    def departure(self) -> Departure:
        """Temperature and top-p, checked."""
        return Departure(self.temperature, self.top_p)

    def move_times(self, nfe: int) -> Float[Tensor, " n"]:
        """Times of the moves: the given ones, or a grid of ``nfe``."""
        return given_times(self.times) if self.times else time_grid(nfe, self.grid)


OWN_SETTINGS = ("guidance", "order", "entropy_bound", "remask")
"""Fields of ``SamplingOptions`` that some samplers read; the field of the sampler has the same name."""
