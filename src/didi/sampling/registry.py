"""The registry of samplers: their processes and settings. A new sampler takes one file and one entry here."""

from dataclasses import dataclass, fields, replace
from typing import Any

from didi.arguments import one_of
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.inference import check_ready
from didi.models.latent import num_codes
from didi.models.networks import DenoiserNetwork
from didi.sampling.ancestral import Ancestral
from didi.sampling.autoregressive import LeftToRight
from didi.sampling.base import Sampler
from didi.sampling.confidence import ConfidenceDecoding
from didi.sampling.entropy_bounded import EntropyBounded
from didi.sampling.first_hitting import FirstHitting
from didi.sampling.guided import Guided
from didi.sampling.one_step import OneStep
from didi.sampling.options import DEFAULT_SAMPLER, OWN_SETTINGS, SETTINGS, SamplerName, SamplingOptions
from didi.sampling.published import Published
from didi.sampling.published_uniform import PublishedUniform
from didi.sampling.remasking import RemaskingSampler
from didi.sampling.reparameterized import Reparameterized
from didi.sampling.score import ScoreSampler
from didi.sampling.uniform_ancestral import NO_CORRECTOR, PredictorCorrector, UniformAncestral
from didi.sampling.uniform_guided import UniformGuided

MASKED = ("absorbing", "sedd-absorb")
"""Masked diffusion. Samplers that need a distribution of x0 normalise the scores of SEDD."""
SCORES = ("sedd-absorb", "sedd-uniform")
"""Processes whose networks give scores (SEDD)."""


@dataclass(frozen=True)
class SamplerKind:
    """A sampler class and how it is built.

    Fields of the class are set by name: ``denoiser``, ``process``, ``discriminator``, ``token_distribution``, and
    settings from the fields of ``SamplingOptions`` of the same name.

    Attributes:
        sampler: the class, a frozen dataclass.
        processes: names of the processes that it supports.
        ignores_grid: whether it has no time grid; the number of moves is then at most the length.
        fixed: fields that options cannot change, and their values.
        num_moves: the number of moves of a sampler that supports one number only; None for all others.
        is_revising: for masked diffusion, whether a move may mask or change a token of an earlier move.
        draws_codes: whether it supports networks that read latent codes (``models.latent``).
    """

    sampler: type[Any]
    processes: tuple[str, ...] = MASKED
    ignores_grid: bool = False
    fixed: tuple[tuple[str, Any], ...] = ()
    num_moves: int | None = None
    is_revising: bool = False
    draws_codes: bool = False

    @property
    def reads(self) -> set[str]:
        """Names of the options that it reads, without the options of all samplers."""
        names = {field.name for field in fields(self.sampler)} - {name for name, _ in self.fixed}
        grid = set() if self.ignores_grid or self.num_moves else {"grid", "times"}
        return names & {*OWN_SETTINGS, "precision", "is_whole_batch"} | grid

    def make(self, bundle: Bundle, options: SamplingOptions) -> Sampler:
        """The sampler with the networks of a bundle.

        Raises:
            UsageError: the sampler needs a discriminator and the bundle has none.
        """
        names = {field.name for field in fields(self.sampler)}
        values: dict[str, Any] = {
            "denoiser": bundle.denoiser(options.role),
            "process": bundle.process,
            "token_distribution": options.token_distribution,
            **dict(self.fixed),
        }
        if "discriminator" in names:
            values["discriminator"] = bundle.discriminator
            if bundle.discriminator is None:
                raise UsageError(
                    f"{options.sampler} sampling needs a discriminator; bundle {bundle.name} has none: use ancestral"
                )
        settings = {name: getattr(options, name) for name in self.reads & names}
        sampler: Sampler = self.sampler(
            **values | {name: value for name, value in settings.items() if value is not None}
        )
        return sampler


SAMPLERS: dict[SamplerName, tuple[SamplerKind, ...]] = {
    "ancestral": (
        SamplerKind(Ancestral, ("absorbing",), fixed=(("leap", "exact"),), draws_codes=True),
        SamplerKind(UniformAncestral, ("uniform",), fixed=(("is_greedy_tail", False), ("remask", NO_CORRECTOR))),
        SamplerKind(ScoreSampler, SCORES, fixed=(("predictor", "analytic"),)),
    ),
    "euler": (SamplerKind(ScoreSampler, SCORES, fixed=(("predictor", "euler"),)),),
    "greedy-tail": (
        SamplerKind(UniformAncestral, ("uniform",), fixed=(("is_greedy_tail", True), ("remask", NO_CORRECTOR))),
    ),
    "guided": (SamplerKind(Guided, draws_codes=True), SamplerKind(UniformGuided, ("uniform",))),
    "first-hitting": (SamplerKind(FirstHitting, ignores_grid=True),),
    "tau-leaping": (SamplerKind(Ancestral, fixed=(("leap", "tau"),), draws_codes=True),),
    "confidence": (SamplerKind(ConfidenceDecoding),),
    "entropy-bounded": (SamplerKind(EntropyBounded, ignores_grid=True),),
    "one-step": (SamplerKind(OneStep, ("absorbing",), num_moves=1),),
    "reparam": (SamplerKind(Reparameterized, is_revising=True),),
    "remasking": (
        SamplerKind(RemaskingSampler, is_revising=True),
        SamplerKind(PredictorCorrector, ("uniform",), fixed=(("is_greedy_tail", False),)),
    ),
    "published": (SamplerKind(Published), SamplerKind(PublishedUniform, ("uniform",))),
}
"""Samplers by name; a name may have several entries, for different processes.

They have the same ``ignores_grid``, ``num_moves`` and own settings with the same defaults: several functions below read
the first entry.
"""


def _kinds(name: SamplerName) -> tuple[SamplerKind, ...]:
    """The entries of a sampler in ``SAMPLERS``; refuses unknown names."""
    return SAMPLERS[one_of("a sampler", name, list(SAMPLERS))]


def find_sampler(name: SamplerName, process: str = "absorbing") -> SamplerKind:
    """The entry of a sampler in ``SAMPLERS`` for a process.

    Raises:
        UsageError: the name is unknown, or the sampler does not support the process.
    """
    for kind in _kinds(name):
        if process in kind.processes:
            return kind
    raise UsageError(f"{name} does not sample {process} diffusion; use one of {', '.join(samplers_of(process))}")


def samplers_of(process: str) -> list[SamplerName]:
    """Names of the samplers that support a process."""
    return [name for name, kinds in SAMPLERS.items() if any(process in kind.processes for kind in kinds)]


def sampler_of(bundle: Bundle, options: SamplingOptions) -> SamplerName:
    """Name of the sampler; the default is ``one-step`` for a student with an initial state, else ``ancestral``.

    Raises:
        UsageError: the bundle has no network for the role.
    """
    if options.sampler != DEFAULT_SAMPLER:
        return options.sampler
    return "one-step" if _starts_at_random(bundle, options) else "ancestral"


def _starts_at_random(bundle: Bundle, options: SamplingOptions) -> bool:
    """Whether the network of ``options`` is a student with an initial state."""
    return bundle.initial_state is not None and bundle.network(options.role) is bundle.student


def make_sampler(bundle: Bundle, options: SamplingOptions, num_moves: int) -> Sampler:
    """The sampler of ``options`` with the networks of the bundle.

    Args:
        bundle: bundle of the networks; networks that read the number of moves are conditioned on ``num_moves``.
        options: name and settings of the sampler.
        num_moves: number of moves of the times that follow; the length for samplers without a time grid.

    Raises:
        UsageError: the sampler is unknown, a network is missing or not ready for sampling, or the sampler does not read
            an option that is set.
    """
    token_distribution, options = options.token_distribution, replace(options, sampler=sampler_of(bundle, options))
    network = bundle.network(options.role)
    kind = find_sampler(options.sampler, bundle.process.name)
    if isinstance(network, AutoregressiveLM):
        if options.sampler != "ancestral" or options.precision != "float64":
            raise UsageError(
                "an autoregressive model is sampled by ancestral sampling in float64; leave both at their default"
            )
        _refuse_unread(options, set(), bundle.process.name)
        check_ready({"autoregressive": network})
        return LeftToRight(network, token_distribution, unwritten_id=bundle.process.mask_id or 0)
    if options.precision == "float32":
        if bundle.process.name in SCORES:
            raise UsageError("score networks are sampled with float64 draws: leave precision at float64")
        if options.sampler not in ("ancestral", "published"):
            raise UsageError(f"{options.sampler} sampling draws in float64: leave precision at float64")
        kind = find_sampler("published", bundle.process.name)
    if options.is_whole_batch and "is_whole_batch" not in kind.reads:
        raise UsageError(
            "a compiled network is sampled by ancestral or tau-leaping in float64: choose these, or do not compile"
        )
    if num_codes(network) and not kind.draws_codes:
        supported = ", ".join(name for name in SAMPLERS if any(kind.draws_codes for kind in _kinds(name)))
        raise UsageError(
            f"the network of bundle {bundle.name} reads latent codes, which only {supported} sampling in float64 "
            f"supports; got {options.sampler} in {options.precision}: choose one of these"
        )
    _refuse_unread(options, kind.reads, bundle.process.name)
    sampler = kind.make(bundle.at_budget(num_moves), with_bundle_settings(options, bundle))
    needs_discriminator = hasattr(sampler, "discriminator")
    used = {
        name: module
        for name, module in bundle.networks().items()
        if module is network or (needs_discriminator and name == "discriminator")
    }
    check_ready(used)
    return sampler


def _refuse_unread(options: SamplingOptions, reads: set[str], process: str) -> None:
    """Refuse options that the sampler would ignore; the message names the samplers that read them."""
    default = SamplingOptions()
    for name in SETTINGS:
        if getattr(options, name) == getattr(default, name) or name in reads:
            continue
        readers = [sampler for sampler in samplers_of(process) if name in find_sampler(sampler, process).reads]
        subject = ", ".join(readers) or f"no sampler of {process}"
        raise UsageError(
            f"{options.sampler} sampling does not read {name}, which {subject} {'does' if len(readers) <= 1 else 'do'}"
            "; leave it out or change the sampler"
        )


def with_bundle_settings(options: SamplingOptions, bundle: Bundle) -> SamplingOptions:
    """``options`` with the sampler, and with the bundle's guidance or initial state if it is read and not set."""
    options = replace(options, sampler=sampler_of(bundle, options))
    reads = find_sampler(options.sampler, bundle.process.name).reads
    if "guidance" in reads and options.guidance is None:
        return replace(options, guidance=bundle.guidance)
    if "initial_state" in reads and options.initial_state is None and _starts_at_random(bundle, options):
        return replace(options, initial_state=bundle.initial_state)
    return options


def with_read_options(options: SamplingOptions, bundle: Bundle) -> SamplingOptions:
    """``options`` without values that the sampler does not read, for options shared by several samplers."""
    is_autoregressive = isinstance(bundle.network(options.role), AutoregressiveLM)
    reads = set() if is_autoregressive else find_sampler(sampler_of(bundle, options), bundle.process.name).reads
    default = SamplingOptions()
    unread = [name for name in SETTINGS if name not in reads]
    return replace(options, **{name: getattr(default, name) for name in unread})


def unread_settings(options: SamplingOptions, bundle: Bundle) -> list[str]:
    """Names of the settings that are set but not read by the sampler of ``options``."""
    read_options = with_read_options(options, bundle)
    return [name for name in SETTINGS if getattr(read_options, name) != getattr(options, name)]


def own_settings(options: SamplingOptions) -> dict[str, object]:
    """The settings of ``OWN_SETTINGS`` that the sampler reads; None is replaced by the default of the sampler."""
    kind = SAMPLERS[options.sampler][0]
    defaults = {field.name: field.default for field in fields(kind.sampler)}
    values = {name: getattr(options, name) for name in OWN_SETTINGS if name in kind.reads}
    return {name: defaults[name] if value is None else value for name, value in values.items()}


def settings_text(options: SamplingOptions) -> str:
    """Settings of the sampler and ``times`` as one line of a report; empty if there are none."""
    parts: dict[str, object] = {}
    for name, value in own_settings(options).items():
        parts |= vars(value) if hasattr(value, "__dict__") else {name: value}
    if options.times:
        parts["times"] = " ".join(f"{t:g}" for t in options.times)
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def ignores_grid(network: DenoiserNetwork | AutoregressiveLM, sampler: SamplerName) -> bool:
    """Whether the sampler has no time grid; the number of moves is then at most the length.

    Raises:
        UsageError: the name of the sampler is unknown.
    """
    return isinstance(network, AutoregressiveLM) or _kinds(sampler)[0].ignores_grid


def moves_without_grid(network: DenoiserNetwork | AutoregressiveLM, sampler: SamplerName, length: int) -> int | None:
    """Largest number of moves of a sampler without a time grid; None for a sampler with a grid.

    Raises:
        UsageError: the name of the sampler is unknown.
    """
    return length if ignores_grid(network, sampler) else _kinds(sampler)[0].num_moves
