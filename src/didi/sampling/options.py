"""Sampling options of the API, the command line and the evaluation."""

from dataclasses import dataclass
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from didi.arguments import finite_number, instance, listed, one_of, set_fields, whole_number
from didi.diffusion.categorical import Precision
from didi.models.bundle import Role
from didi.models.guidance import Guidance
from didi.models.initial_state import InitialState
from didi.sampling.base import Grid, given_times, time_grid
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.remasking import Remasking
from didi.sampling.reparameterized import Reparameterization
from didi.sampling.token_distribution import TokenDistribution

SamplerName = str
"""A name in ``didi.sampling.SAMPLERS``, or ``DEFAULT_SAMPLER``."""

DEFAULT_SAMPLER: SamplerName = "default"
"""Chooses the sampler that fits the bundle, see ``registry.sampler_of``."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample. Evaluations record all fields except ``batch_size`` and ``is_whole_batch``.

    The fields from ``guidance`` on are read by some samplers only: None is the default of the sampler, and a value that
    the chosen sampler does not read is refused.

    Attributes:
        sampler: a name in ``didi.sampling.SAMPLERS``: ``ancestral`` (Eq. 10; left to right for an autoregressive
            network), ``guided`` (Algorithm 2), ``first-hitting`` (exact, one token per pass), ``tau-leaping``,
            ``confidence``, ``entropy-bounded``, ``remasking``, ``reparam`` (DPLM), ``one-step``, ``published`` (public
            code), ``greedy-tail`` (uniform-state diffusion) or ``euler`` (SEDD); ``default`` is ``one-step`` for a
            student with an initial state, else ``ancestral``.
        role: network that is sampled; by default the student if there is one.
        precision: precision of the draws.
        temperature: divides the logits; 1 is exact, 0 takes the most likely tokens.
        top_p: the most probable tokens whose probabilities reach this sum are kept; 1 is exact.
        grid: spacing of the times of the moves.
        times: times of the moves, from 1 down to 0, instead of ``nfe`` and ``grid``.
        batch_size: number of sequences that are sampled together. It affects speed and memory; samples change by
            rounding only (``SequenceNoise``).
        is_whole_batch: ancestral sampling runs the network on whole batches only, for compiled networks.
        guidance: settings of ``guided``; None is the guidance of the bundle, if it has one.
        order: the order in which ``confidence`` reveals positions.
        entropy_bound: ``EntropyBounded.entropy_bound``, in nats; None is its default.
        remask: settings of ``remasking``.
        initial_state: initial state of ``one-step``; None is the initial state of the bundle for its student, and masks
            only for other networks.
        reparam: settings of ``reparam``.

    Raises:
        UsageError: a value has the wrong type, is out of range, or is not one of the choices.
    """

    sampler: SamplerName = DEFAULT_SAMPLER
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
    initial_state: InitialState | None = None
    reparam: Reparameterization | None = None

    def __post_init__(self) -> None:
        token_distribution = self.token_distribution
        set_fields(
            self,
            role=None if self.role is None else one_of("a role", self.role, get_args(Role)),
            precision=one_of("precision", self.precision, get_args(Precision)),
            temperature=token_distribution.temperature,
            top_p=token_distribution.top_p,
            grid=one_of("a time grid", self.grid, get_args(Grid)),
            times=tuple(finite_number("times", t) for t in listed("times", self.times, allows_none=True)),
            batch_size=whole_number("batch_size", self.batch_size, low=1),
            is_whole_batch=one_of("is_whole_batch", self.is_whole_batch, (True, False)),
        )
        for name, kind in KINDS.items():
            if getattr(self, name) is not None:
                instance(name, getattr(self, name), kind)
        if self.entropy_bound is not None:
            set_fields(self, entropy_bound=finite_number("entropy_bound", self.entropy_bound, low=0))

    @property
    def token_distribution(self) -> TokenDistribution:
        """Temperature and top-p, checked."""
        return TokenDistribution(self.temperature, self.top_p)

    def move_times(self, nfe: int) -> Float[Tensor, " n"]:
        """Times of the moves: ``times`` if they are set, or a grid of ``nfe`` moves."""
        return given_times(self.times) if self.times else time_grid(nfe, self.grid)


KINDS: dict[str, type[Any]] = {
    "guidance": Guidance,
    "order": ConfidenceOrder,
    "remask": Remasking,
    "initial_state": InitialState,
    "reparam": Reparameterization,
}
"""Types of the fields that are settings dataclasses."""

OWN_SETTINGS = ("guidance", "order", "entropy_bound", "remask", "initial_state", "reparam")
"""Fields of ``SamplingOptions`` that become a field of the same name of some samplers."""

SETTINGS = (*OWN_SETTINGS, "grid", "times")
"""Fields of ``SamplingOptions`` that not every sampler reads."""
