"""The work that is timed: a sampler, bare network passes beside it, or an autoregressive model.

Masked diffusion needs the vocabulary head at the positions that a move reveals, so that its bare passes are those of
the trunk. Uniform-state diffusion and score networks (SEDD) predict every position that may change, so that theirs are
trunk and head at all of these: every position, or the masked ones of SEDD absorb. The ancestral sampler of
uniform-state diffusion reads fewer and can be faster than them.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.score import ScoreProcess
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.inference import Numerics
from didi.models.latent import features_with, num_codes
from didi.models.networks import DenoiserNetwork
from didi.sampling.autoregressive import LeftToRight
from didi.sampling.base import Sampler, time_grid
from didi.sampling.guided import Guidance
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import find_sampler, make_sampler
from didi.sampling.token_distribution import TokenDistribution
from didi.sampling.uniform_ancestral import ROWS

Method = Literal[
    "ancestral", "greedy-tail", "euler", "trunk", "passes", "published", "guided", "guided floor", "autoregressive"
]
TRACED: dict[str, Method] = {
    "ancestral": "ancestral",
    "greedy-tail": "greedy-tail",
    "euler": "euler",
    "guided": "guided",
    "trunk": "ancestral",
    "passes": "ancestral",
    "guided floor": "guided",
}
"""Samplers whose passes are recorded, and which of them bare passes repeat."""
FLOORS = ("trunk", "passes", "guided floor")
SEED = 0


def floor_of(method: str, process: Process) -> Method | None:
    """The bare passes that a method is compared with; None for these themselves and for an autoregressive model."""
    if method in FLOORS or method == "autoregressive":
        return None
    if method == "guided":
        return "guided floor"
    return "trunk" if type(process) is Absorbing else "passes"


def default_methods(process: Process) -> tuple[Method, ...]:
    """What is timed where nothing is asked for; ``floor_of`` adds the bare passes."""
    if type(process) is Absorbing:
        return ("ancestral", "trunk", "published", "autoregressive")
    is_score = isinstance(process, ScoreProcess)
    return ("ancestral", "euler", "passes") if is_score else ("ancestral", "greedy-tail", "passes", "published")


@dataclass(frozen=True)
class Variant:
    """How the networks run: see ``didi.models.inference.for_inference``."""

    numerics: Numerics = "float32"
    is_compiled: bool = False

    def __str__(self) -> str:
        return self.numerics + (", compiled" if self.is_compiled else "")


@dataclass(frozen=True)
class Workload:
    """What every contestant has to do.

    Attributes:
        batch_size: sequences at a time.
        length: positions.
        nfe: moves of the masked-diffusion samplers.
        guidance: of the guided sampler.
    """

    batch_size: int
    length: int
    nfe: int
    guidance: Guidance = field(default_factory=Guidance)


def twin(network: DenoiserNetwork) -> AutoregressiveLM:
    """An autoregressive model of the same vocabulary, width, depth and heads, with fresh weights."""
    shape = network.config
    model = AutoregressiveLM(
        AutoregressiveConfig(
            vocab_size=shape.vocab_size,
            mask_id=shape.vocab_size - 1 if shape.mask_id is None else shape.mask_id,
            length=shape.length,
            hidden_size=shape.hidden_size,
            num_blocks=shape.num_blocks,
            num_heads=shape.num_heads,
        )
    )
    return model.to(next(iter(network.parameters())).device).eval()


def contestant(
    bundle: Bundle, method: Method, load: Workload, *, is_whole_batch: bool = False, traced: "Trace | None" = None
) -> Callable[[], object]:
    """The work of a method, ready to be run and timed.

    Args:
        bundle: networks.
        method: which.
        load: how much.
        is_whole_batch: the ancestral sampler sees one shape only, as a compiled network wants it.
        traced: a run of the sampler whose passes are to be run; made here if it is not given.

    Raises:
        UsageError: the bundle lacks a network that the method needs, or its process the sampler.
    """
    if method == "autoregressive":
        network = bundle.autoregressive or twin(bundle.denoiser())
        return lambda: _drain(LeftToRight(network), network, load)
    bundle = bundle.at_budget(load.nfe)
    if method not in FLOORS:
        reads = find_sampler(method, bundle.process.name).reads
        options = SamplingOptions(
            method,
            guidance=load.guidance if method == "guided" else None,
            is_whole_batch=is_whole_batch and "is_whole_batch" in reads,
        )
        sampler = make_sampler(bundle, options, load.nfe)
        return lambda: _drain(sampler, bundle.denoiser(), load)
    seen = traced or trace(bundle, TRACED[method], load, is_whole_batch=is_whole_batch)
    if method == "passes":
        return lambda: _whole_passes(bundle, seen, load)
    return lambda: _passes(bundle, seen.shapes, load)


@torch.no_grad()
def _drain(sampler: Sampler, network: DenoiserNetwork | AutoregressiveLM, load: Workload) -> Tensor:
    """Sample one batch."""
    device = next(iter(network.parameters())).device
    canvas = Canvas.blank(load.batch_size, load.length, device)
    z = canvas.tokens
    noise = SequenceNoise(SEED, range(load.batch_size), device)
    for step in sampler(canvas, time_grid(load.nfe), noise):
        z = step.z
    return z


def timed(draw: Callable[[], object], bundle: Bundle) -> float:
    """Seconds of some work on the networks of a bundle."""
    is_cuda = next(iter(bundle.network().parameters())).device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    draw()
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


@dataclass
class Trace:
    """The passes of a sampler's networks in one run.

    Attributes:
        seconds: time in each part.
        shapes: (network, rows, whether with gradients) of every pass, in order.
        head_rows: positions that the vocabulary head read after each pass of the trunk.
        whole: time of the run.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    shapes: list[tuple[str, int, bool]] = field(default_factory=list)
    head_rows: list[int] = field(default_factory=list)
    whole: float = math.nan

    @property
    def shares(self) -> dict[str, float]:
        """Parts of the time that networks, draws and the rest take; they sum to 1."""
        found = {part: seconds / self.whole for part, seconds in self.seconds.items()}
        return found | {"rest": 1 - sum(found.values())}


def trace(bundle: Bundle, method: Method, load: Workload, *, is_whole_batch: bool = False) -> Trace:
    """The trace of one run of a sampler."""
    bundle = bundle.at_budget(load.nfe)
    draw = contestant(bundle, method, load, is_whole_batch=is_whole_batch)
    with _watched(bundle) as seen:
        seen.whole = timed(draw, bundle)
    return seen


@contextlib.contextmanager
def _watched(bundle: Bundle) -> Iterator[Trace]:
    """Record time and shape of each pass while the context lasts."""
    seen, denoiser, discriminator = Trace(), bundle.denoiser(), bundle.discriminator
    parts: list[tuple[Any, str, str]] = [
        (denoiser, "features", "trunk"),
        (denoiser, "head", "head"),
        (TokenDistribution, "sample", "draw"),
    ]
    if discriminator is not None:
        parts += [(discriminator, "from_embeddings", "discriminator"), (torch.autograd, "grad", "discriminator")]

    def watch(owner: Any, name: str, part: str) -> Callable[..., Any]:
        watched = getattr(owner, name)

        def watching(*args: Any, **options: Any) -> Any:
            if name in ("features", "from_embeddings"):
                seen.shapes.append((part, len(args[0]), torch.is_grad_enabled()))
            if name == "features":
                seen.head_rows.append(0)
            elif name == "head":
                seen.head_rows[-1] += math.prod(args[0].shape[:-1])
            result: list[Any] = []
            elapsed = timed(lambda: result.append(watched(*args, **options)), bundle)
            seen.seconds[part] = seen.seconds.get(part, 0.0) + elapsed
            return result[0]

        return watching

    with contextlib.ExitStack() as stack:
        for owner, name, part in parts:
            held = vars(owner).get(name)  # None where the class, not the instance, has it
            setattr(owner, name, watch(owner, name, part))
            stack.callback(delattr if held is None else setattr, owner, name, *([] if held is None else [held]))
        yield seen


def _passes(bundle: Bundle, shapes: Sequence[tuple[str, int, bool]], load: Workload) -> None:
    """The bare passes that were recorded; one that a gradient went through counts twice."""
    denoiser, discriminator = bundle.denoiser(), bundle.discriminator
    device = next(iter(denoiser.parameters())).device
    with torch.inference_mode():
        for part, rows, has_gradient in shapes:
            z = torch.zeros(rows, load.length, dtype=torch.long, device=device)
            if part == "trunk" or discriminator is None:
                features_with(denoiser, z, codes=torch.zeros_like(z) if num_codes(denoiser) else None)
                continue
            for _ in range(1 + has_gradient):
                discriminator(z, None)


@torch.inference_mode()
def _whole_passes(bundle: Bundle, seen: Trace, load: Workload) -> None:
    """The recorded passes of the trunk, each with the head at every position that is predicted."""
    denoiser, process = bundle.denoiser(), bundle.process
    device = next(iter(denoiser.parameters())).device
    level = process.noise_level(denoiser, torch.full((1,), 0.5, dtype=torch.float64, device=device))
    trunk = [rows for part, rows, _ in seen.shapes if part == "trunk"]
    for rows, num_read in zip(trunk, seen.head_rows, strict=True):
        z = torch.zeros(rows, load.length, dtype=torch.long, device=device)
        codes, levels = (
            torch.zeros_like(z) if num_codes(denoiser) else None,
            None if level is None else level.expand(rows),
        )
        features = features_with(denoiser, z, levels, codes=codes).flatten(0, 1)
        # Without a mask all positions are predicted. A state that sequences share is read once, and predicted for each.
        num = len(features) if process.mask_id is None else num_read
        for begin in range(0, num, ROWS):
            denoiser.head(features[torch.arange(begin, min(begin + ROWS, num), device=device) % len(features)])
