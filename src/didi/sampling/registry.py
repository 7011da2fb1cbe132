"""The samplers by name: for which process, with which settings. A new one is one file and one line here."""

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


@dataclass(frozen=True)
class SamplerKind:
    """A sampler class and what it is built from.

    Its fields are filled by name: ``denoiser``, ``process``, ``discriminator`` and ``token_distribution``, and settings
    from the fields of ``SamplingOptions`` of the same name.

    Attributes:
        sampler: the class, a frozen dataclass.
        processes: names of the processes that it samples.
        ignores_grid: whether the number of passes, at most the length, does not follow from a time grid.
        fixed: fields with one value for all users.
        num_moves: of a sampler that has one number of moves only.
        is_revising: whether a move may mask or change a token that an earlier one has drawn, of masked diffusion.
        draws_codes: whether it samples networks that read latent codes (``models.latent``).
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
        """Names of the options, beyond those of every sampler, that it reads."""
        names = {one.name for one in fields(self.sampler)} - {name for name, _ in self.fixed}
        grid = set() if self.ignores_grid or self.num_moves else {"grid", "times"}
        return names & {*OWN_SETTINGS, "precision", "is_whole_batch"} | grid

    def make(self, bundle: Bundle, options: SamplingOptions) -> Sampler:
        """The sampler on the networks of a bundle.

        Raises:
            UsageError: the bundle lacks the discriminator that it needs.
        """
        names = {one.name for one in fields(self.sampler)}
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
        sampler: Sampler = self.sampler(**values | {name: one for name, one in settings.items() if one is not None})
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
"""For each name, the class for each process that it supports."""


def _kinds(name: SamplerName) -> tuple[SamplerKind, ...]:
    """The classes of a sampler; a name that is unknown is refused."""
    return SAMPLERS[one_of("a sampler", name, list(SAMPLERS))]


def find_sampler(name: SamplerName, process: str = "absorbing") -> SamplerKind:
    """The class of a sampler for a process.

    Raises:
        UsageError: there is no sampler of that name, or it does not support the process.
    """
    for kind in _kinds(name):
        if process in kind.processes:
            return kind
    raise UsageError(f"{name} does not sample {process} diffusion; use one of {', '.join(samplers_of(process))}")


def samplers_of(process: str) -> list[SamplerName]:
    """Names of the samplers that support a process."""
    return [name for name, kinds in SAMPLERS.items() if any(process in kind.processes for kind in kinds)]


def sampler_of(bundle: Bundle, options: SamplingOptions) -> SamplerName:
    """The sampler of ``options``; the default is ``one-step`` for a student with an initial state, else ``ancestral``.

    Raises:
        UsageError: the bundle has no network of the role.
    """
    if options.sampler != DEFAULT_SAMPLER:
        return options.sampler
    return "one-step" if _starts_at_random(bundle, options) else "ancestral"


def _starts_at_random(bundle: Bundle, options: SamplingOptions) -> bool:
    """Whether the network of ``options`` is a student with an initial state."""
    return bundle.initial_state is not None and bundle.network(options.role) is bundle.student


def make_sampler(bundle: Bundle, options: SamplingOptions, num_moves: int) -> Sampler:
    """The sampler that ``options`` ask for, on the bundle's networks.

    Args:
        bundle: its networks are conditioned on the number of moves where they read it.
        options: which sampler, and its settings.
        num_moves: of the times that the sampler is going to get; the length where passes follow no grid.

    Raises:
        UsageError: the sampler is unknown, the bundle lacks a network it needs or has it in a state that cannot be
            sampled, or an option is given that the sampler does not read.
    """
    token_distribution, options = options.token_distribution, replace(options, sampler=sampler_of(bundle, options))
    network = bundle.network(options.role)
    kind = find_sampler(options.sampler, bundle.process.name)
    if isinstance(network, AutoregressiveLM):
        if options.sampler != "ancestral" or options.precision != "float64":
            raise UsageError(
                "an autoregressive model has the ancestral sampler in float64; leave both at their default"
            )
        _refuse_unread(options, set(), bundle.process.name)
        check_ready({"autoregressive": network})
        return LeftToRight(network, token_distribution, unwritten_id=bundle.process.mask_id or 0)
    if options.precision == "float32":
        if bundle.process.name in SCORES:
            raise UsageError("score networks are sampled with float64 draws; leave --precision at float64")
        if options.sampler not in ("ancestral", "published"):
            raise UsageError(f"{options.sampler} sampling draws in float64; leave --precision at float64")
        kind = find_sampler("published", bundle.process.name)
    if options.is_whole_batch and "is_whole_batch" not in kind.reads:
        raise UsageError("a compiled network goes with float64 ancestral or tau-leaping sampling; leave --compile out")
    if num_codes(network) and not kind.draws_codes:
        drawing = ", ".join(name for name in SAMPLERS if any(one.draws_codes for one in _kinds(name)))
        raise UsageError(
            f"the network of bundle {bundle.name} reads latent codes, which {drawing} sampling with float64 draws "
            f"alone draws; got {options.sampler} in {options.precision}: choose one of these"
        )
    _refuse_unread(options, kind.reads, bundle.process.name)
    sampler = kind.make(bundle.at_budget(num_moves), with_bundle_settings(options, bundle))
    judges = {"discriminator"} if hasattr(sampler, "discriminator") else set()
    check_ready({name: one for name, one in bundle.networks().items() if one is network or name in judges})
    return sampler


def _refuse_unread(options: SamplingOptions, reads: set[str], process: str) -> None:
    """Refuse options that the sampler would ignore, and name those of the process that read them."""
    default = SamplingOptions()
    for name in SETTINGS:
        if getattr(options, name) == getattr(default, name) or name in reads:
            continue
        readers = [other for other in samplers_of(process) if name in find_sampler(other, process).reads]
        named = ", ".join(readers) or f"no sampler of {process}"
        raise UsageError(
            f"{options.sampler} sampling does not read {name}, which {named} {'does' if len(readers) <= 1 else 'do'}; "
            "leave it out or change the sampler"
        )


def with_bundle_settings(options: SamplingOptions, bundle: Bundle) -> SamplingOptions:
    """``options`` with the sampler, guidance and initial state of the bundle, where they are read and not given."""
    options = replace(options, sampler=sampler_of(bundle, options))
    reads = find_sampler(options.sampler, bundle.process.name).reads
    if "guidance" in reads and options.guidance is None:
        return replace(options, guidance=bundle.guidance)
    if "initial_state" in reads and options.initial_state is None and _starts_at_random(bundle, options):
        return replace(options, initial_state=bundle.initial_state)
    return options


def with_read_options(options: SamplingOptions, bundle: Bundle) -> SamplingOptions:
    """``options`` without those that their sampler does not read, for one set of options shared by several samplers."""
    is_autoregressive = isinstance(bundle.network(options.role), AutoregressiveLM)
    reads = set() if is_autoregressive else find_sampler(sampler_of(bundle, options), bundle.process.name).reads
    default = SamplingOptions()
    unread = [name for name in SETTINGS if name not in reads]
    return replace(options, **{name: getattr(default, name) for name in unread})


def unread_settings(options: SamplingOptions, bundle: Bundle) -> list[str]:
    """Names of the settings that are given, and that the sampler of ``options`` does not read."""
    kept = with_read_options(options, bundle)
    return [name for name in SETTINGS if getattr(kept, name) != getattr(options, name)]


def own_settings(options: SamplingOptions) -> dict[str, object]:
    """The settings of ``OWN_SETTINGS`` that the sampler reads, with its own default where an option is None."""
    kind = SAMPLERS[options.sampler][0]
    defaults = {one.name: one.default for one in fields(kind.sampler)}
    values = {name: getattr(options, name) for name in OWN_SETTINGS if name in kind.reads}
    return {name: defaults[name] if value is None else value for name, value in values.items()}


def described(options: SamplingOptions) -> str:
    """The sampler's own settings and given times, for the record; empty where there are none."""
    parts: dict[str, object] = {}
    for name, value in own_settings(options).items():
        parts |= vars(value) if hasattr(value, "__dict__") else {name: value}
    if options.times:
        parts["times"] = " ".join(f"{t:g}" for t in options.times)
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def ignores_grid(network: DenoiserNetwork | AutoregressiveLM, sampler: SamplerName) -> bool:
    """Whether the number of passes, at most the length, does not follow from a time grid.

    Raises:
        UsageError: there is no sampler of that name.
    """
    return isinstance(network, AutoregressiveLM) or _kinds(sampler)[0].ignores_grid


def moves_without_grid(network: DenoiserNetwork | AutoregressiveLM, sampler: SamplerName, length: int) -> int | None:
    """Number of moves of a sampler without a time grid, at most ``length``; None for one that has a grid.

    Raises:
        UsageError: there is no sampler of that name.
    """
    return length if ignores_grid(network, sampler) else _kinds(sampler)[0].num_moves
