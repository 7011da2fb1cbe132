"""From a bundle to texts: the one entry to sampling that the API, the CLI and the evaluation share."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.categorical import Precision
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.dit import DiT
from didi.models.hub import Bundle, Role
from didi.sampling.ancestral import Ancestral
from didi.sampling.autoregressive import LeftToRight
from didi.sampling.base import Grid, Sampler, StepOutput, given_times, time_grid
from didi.sampling.confidence import ConfidenceDecoding, ConfidenceOrder
from didi.sampling.departure import Departure
from didi.sampling.entropy_bounded import EntropyBounded
from didi.sampling.first_hitting import FirstHitting
from didi.sampling.guided import Guidance, Guided
from didi.sampling.published import Published
from didi.sampling.remasking import Remasking, RemaskingSampler
from didi.world import world

SamplerName = Literal[
    "ancestral", "guided", "first-hitting", "tau-leaping", "confidence", "entropy-bounded", "remasking"
]


@dataclass(frozen=True)
class Generation:
    """A finished sample set.

    Attributes:
        tokens: clean tokens, no mask among them.
        texts: decoded texts; the token numbers, space separated, for a bundle without tokenizer.
        nfe: moves of the time grid, an upper bound on the student passes of a sequence.
        student_passes: passes that each sequence really needed.
        discriminator_passes: discriminator passes of each sequence, backward-to-input passes included.
        seed: seed of the set.
        precision: precision of the draws.
        sampler: name of the sampler.
        seconds: wall-clock time of the whole set.
    """

    tokens: Int[Tensor, "n l"]
    texts: list[str]
    nfe: int
    student_passes: Int[Tensor, " n"]
    discriminator_passes: Int[Tensor, " n"]
    seed: int
    precision: str
    sampler: str
    seconds: float


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample; every field but the batch's is recorded with the results.

    Attributes:
        sampler: ``ancestral`` (Eq. 10; left to right for an autoregressive network), ``guided`` (Algorithm 2),
            ``first-hitting`` (exact, one token a pass), ``tau-leaping``, ``confidence``, ``entropy-bounded`` or
            ``remasking``.
        role: which network; the student where there is one, by default.
        precision: of the draws.
        temperature: divides the logits; 1 is exact.
        top_p: share of a token's law that is kept, the likeliest tokens first; 1 is exact.
        grid: how the times of the moves are spaced.
        times: the times themselves, from 1 down to 0, instead of ``nfe`` and ``grid``.
        guidance: settings of the guided sampler.
        order: which positions ``confidence`` reveals first.
        entropy_bound: nats that ``entropy-bounded`` may draw at once beyond the largest entropy.
        remask: settings of ``remasking``.
        batch_size: sequences at a time; changes speed and memory, never a sample's law or seed.
        is_whole_batch: ancestral sampling runs the network on whole batches only, for networks that are compiled.
    """

    sampler: SamplerName = "ancestral"
    role: Role | None = None
    precision: Precision = "float64"
    temperature: float = 1.0
    top_p: float = 1.0
    grid: Grid = "uniform"
    times: tuple[float, ...] = ()
    guidance: Guidance = field(default_factory=Guidance)
    order: ConfidenceOrder = field(default_factory=ConfidenceOrder)
    entropy_bound: float = 1.0
    remask: Remasking = field(default_factory=Remasking)
    batch_size: int = 32
    is_whole_batch: bool = False

    @property
    def settings(self) -> str:
        """What the sampler was told beyond temperature, top-p and grid, for the record; empty for plain ancestral."""
        own: dict[str, object] = {"guided": self.guidance, "confidence": self.order, "remasking": self.remask}
        told = vars(own[self.sampler]) if self.sampler in own else {}
        if self.sampler == "entropy-bounded":
            told = {"entropy_bound": self.entropy_bound}
        if self.times:
            told = told | {"times": " ".join(f"{t:g}" for t in self.times)}
        return ", ".join(f"{name} {value}" for name, value in told.items())

    @property
    def departure(self) -> Departure:
        """Temperature and top-p, checked."""
        return Departure(self.temperature, self.top_p)

    def move_times(self, nfe: int) -> Float[Tensor, " n"]:
        """Times of the moves: the given ones, or a grid of ``nfe``."""
        return given_times(self.times) if self.times else time_grid(nfe, self.grid)


def make_sampler(bundle: Bundle, options: SamplingOptions) -> Sampler:
    """The sampler that ``options`` ask for, on the bundle's networks.

    Raises:
        UsageError: the sampler or precision is unknown, or the bundle lacks a network it needs.
    """
    if options.precision not in get_args(Precision):
        raise UsageError(f"precision is one of {', '.join(get_args(Precision))}; got {options.precision!r}")
    if options.sampler not in get_args(SamplerName):
        raise UsageError(f"a sampler is one of {', '.join(get_args(SamplerName))}; got {options.sampler!r}")
    departure = options.departure
    network = bundle.network(options.role)
    if isinstance(network, AutoregressiveLM):
        if options.sampler != "ancestral" or options.precision != "float64":
            raise UsageError(
                "an autoregressive model has the ancestral sampler in float64; leave both at their default"
            )
        return LeftToRight(network, departure)
    if options.sampler != "ancestral" and options.precision != "float64":
        raise UsageError(f"{options.sampler} sampling draws in float64; leave --precision at float64")
    if options.is_whole_batch and (
        options.sampler not in ("ancestral", "tau-leaping") or options.precision != "float64"
    ):
        raise UsageError("a compiled network goes with float64 ancestral or tau-leaping sampling; leave --compile out")
    denoiser = bundle.denoiser(options.role)
    match options.sampler:
        case "ancestral":
            if options.precision == "float32":
                return Published(denoiser, departure)
            return Ancestral(denoiser, departure, is_whole_batch=options.is_whole_batch)
        case "tau-leaping":
            return Ancestral(denoiser, departure, leap="tau", is_whole_batch=options.is_whole_batch)
        case "guided":
            if bundle.discriminator is None:
                raise UsageError(f"guided sampling needs a discriminator; bundle {bundle.name} has none: use ancestral")
            return Guided(denoiser, bundle.discriminator, options.guidance, departure)
        case "first-hitting":
            return FirstHitting(denoiser, departure)
        case "confidence":
            return ConfidenceDecoding(denoiser, options.order, departure)
        case "entropy-bounded":
            return EntropyBounded(denoiser, options.entropy_bound, departure)
        case "remasking":
            return RemaskingSampler(denoiser, options.remask, departure)


def is_self_paced(network: DiT | AutoregressiveLM, sampler: SamplerName) -> bool:
    """Whether the number of passes, at most the length, does not follow from a time grid."""
    return isinstance(network, AutoregressiveLM) or sampler in ("first-hitting", "entropy-bounded")


def canvas_from_prompt(bundle: Bundle, length: int, *, prefix: str | None, infill: str | None) -> Int[Tensor, " l"]:
    """The initial state: masks everywhere but at the prompt's tokens.

    Args:
        bundle: whose tokenizer and mask are used.
        length: number of positions.
        prefix: text that the sequence begins with.
        infill: text in which each [MASK] is one token to fill in; positions after it are free.

    Raises:
        UsageError: both are given, the bundle has no tokenizer, or the prompt is longer than the sequence.
    """
    mask_id = bundle.network().mask_id
    canvas = torch.full((length,), mask_id, dtype=torch.long)
    if prefix is not None and infill is not None:
        raise UsageError("give a prefix or an infill text, not both")
    prompt = prefix if prefix is not None else infill
    if prompt is None:
        return canvas
    if bundle.tokenizer is None:
        raise UsageError(f"a prompt needs a tokenizer; bundle {bundle.name} has none: leave the prompt out")
    if ("[MASK]" in prompt) != (infill is not None):
        raise UsageError("--infill has a [MASK] for each token to fill in, and --prefix has none; exchange them")
    # The mask is a token of its own that takes the space before it along (data.text).
    try:
        ids = bundle.tokenizer.encode(prompt, add_special_tokens=False).ids
    except Exception as error:  # of tokenizers, which has no narrower one: a word-level vocabulary lacks a word
        known = ", ".join(sorted(bundle.tokenizer.get_vocab())[:3])
        raise UsageError(f"a prompt is made of this tokenizer's words ({known}, ...); got {prompt!r}") from error
    if len(ids) > length:
        raise UsageError(f"a prompt has at most {length} tokens here; this one has {len(ids)}: shorten it")
    canvas[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return canvas


def decode(bundle: Bundle, tokens: Int[Tensor, "n l"]) -> list[str]:
    """Texts of token sequences; the numbers themselves without a tokenizer."""
    rows = tokens.tolist()
    if bundle.tokenizer is None:
        return [" ".join(map(str, row)) for row in rows]
    return bundle.tokenizer.decode_batch(rows, skip_special_tokens=False)


def steps(
    bundle: Bundle, indices: list[int], *, nfe: int, seed: int, options: SamplingOptions, canvas: Tensor | None = None
) -> Iterator[StepOutput]:
    """Moves of one batch: the sequences numbered ``indices`` of the sample set ``seed``."""
    network = bundle.network(options.role)
    device = next(iter(network.parameters())).device
    if canvas is None:
        canvas = torch.full((network.length,), network.mask_id, dtype=torch.long)
    z = canvas.to(device).expand(len(indices), -1).clone()
    yield from make_sampler(bundle, options)(
        z, options.move_times(nfe), bundle.schedule, SequenceNoise(seed, indices, device)
    )


def generate(
    bundle: Bundle,
    *,
    num_samples: int = 8,
    nfe: int = 16,
    seed: int = 0,
    prefix: str | None = None,
    infill: str | None = None,
    length: int | None = None,
    options: SamplingOptions | None = None,
    on_step: Callable[[StepOutput], None] | None = None,
    **overrides: object,
) -> Generation:
    """Sample texts from a bundle; the processes of ``didi.world`` share the work, and each gets all of it.

    Args:
        bundle: from ``didi.load``.
        num_samples: number of sequences.
        nfe: moves of the time grid: the student passes of a sequence are at most this many. It is the length,
            whatever is asked, where passes follow no grid, and the number of moves of ``times`` where those are given.
        seed: same seed, same samples, whatever the batch size.
        prefix: text that every sequence begins with.
        infill: text whose [MASK]s are filled in.
        length: positions; the network's context length by default.
        options: sampler, role, precision and the like.
        on_step: called after every move of every batch.
        overrides: fields of ``SamplingOptions`` by name, instead of ``options``.

    Raises:
        UsageError: what is asked for does not exist or does not fit; see the functions above.
    """
    if options is None:
        unknown = set(overrides) - set(SamplingOptions.__dataclass_fields__)
        if unknown:
            raise UsageError(
                f"options are {', '.join(SamplingOptions.__dataclass_fields__)}; got {', '.join(sorted(unknown))}"
            )
        options = SamplingOptions(**overrides)  # type: ignore[arg-type]
    elif overrides:
        raise UsageError("give options or their fields by name, not both")
    if num_samples < 1 or options.batch_size < 1:
        raise UsageError(f"num_samples and batch_size are 1 or more; got {num_samples} and {options.batch_size}")
    network = bundle.network(options.role)
    length = network.length if length is None else length
    if not 1 <= length <= network.length:
        raise UsageError(f"length lies in [1, {network.length}], the network's context; got {length}")
    nfe = length if is_self_paced(network, options.sampler) else len(options.move_times(nfe)) - 1
    canvas = canvas_from_prompt(bundle, length, prefix=prefix, infill=infill)
    started = time.perf_counter()
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    mine = range(num_samples)[world().share(num_samples)]
    for begin in range(0, len(mine), options.batch_size):
        indices = list(mine[begin : begin + options.batch_size])
        student_passes = torch.zeros(len(indices), dtype=torch.long)
        discriminator_passes = torch.zeros(len(indices), dtype=torch.long)
        z = canvas.expand(len(indices), -1)
        for step in steps(bundle, indices, nfe=nfe, seed=seed, options=options, canvas=canvas):
            z = step.z
            student_passes += step.student_passes
            discriminator_passes += step.discriminator_passes
            if on_step is not None:
                on_step(step)
        drawn.append((z.cpu(), student_passes, discriminator_passes))
    all_tokens, all_student, all_discriminator = map(torch.cat, zip(*world().joined_items(drawn), strict=True))
    return Generation(
        tokens=all_tokens,
        texts=decode(bundle, all_tokens),
        nfe=nfe,
        student_passes=all_student,
        discriminator_passes=all_discriminator,
        seed=seed,
        precision=options.precision,
        sampler=options.sampler,
        seconds=time.perf_counter() - started,
    )
