"""The work that ``didi bench`` times: a sampler, its bare network passes, or an autoregressive model.

Bare passes are the network passes of a sampler without its other work. In masked diffusion the vocabulary head is
needed only at the positions that a move reveals, so the bare passes are those of the trunk. Uniform-state diffusion
and score networks (SEDD) predict every position that may change, so their bare passes are trunk and head at all of
these positions: the masked positions for absorbing SEDD, otherwise every position. The ancestral sampler of
uniform-state diffusion evaluates the head at fewer positions and can be faster than these bare passes.
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
from didi.sampling.base import ROWS, Sampler, time_grid
from didi.sampling.guided import Guidance
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import find_sampler, make_sampler
from didi.sampling.token_distribution import TokenDistribution

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
"""The sampler whose network passes are recorded, by method: a sampler itself, or the sampler of bare passes."""
FLOORS = ("trunk", "passes", "guided floor")
SEED = 0


def floor_of(method: str, process: Process) -> Method | None:
    """The bare passes that a method is compared with; None for bare passes and for an autoregressive model."""
    if method in FLOORS or method == "autoregressive":
        return None
    if method == "guided":
        return "guided floor"
    return "trunk" if type(process) is Absorbing else "passes"


def default_methods(process: Process) -> tuple[Method, ...]:
    """Methods that are timed by default."""
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
    """The batch that every method draws.

    Attributes:
        batch_size: number of sequences.
        length: number of positions.
        nfe: number of moves of the diffusion samplers.
        guidance: settings of the guided sampler.
    """

    batch_size: int
    length: int
    nfe: int
    guidance: Guidance = field(default_factory=Guidance)


def autoregressive_baseline(network: DenoiserNetwork) -> AutoregressiveLM:
    """An autoregressive model of the same vocabulary, width, depth and heads, with random weights."""
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


def draw_function(
    bundle: Bundle, method: Method, workload: Workload, *, is_whole_batch: bool = False, traced: "Trace | None" = None
) -> Callable[[], object]:
    """A function that draws one batch by a method, or makes its bare passes, to be timed.

    Args:
        bundle: the networks.
        method: the method.
        workload: the batch to draw.
        is_whole_batch: whether the ancestral sampler passes the whole batch in every move, so that a compiled network
            is called with one shape only.
        traced: recorded run of the sampler, for bare passes; recorded here by default.

    Raises:
        UsageError: the bundle lacks a network that the method needs, or its process has no such sampler.
    """
    if method == "autoregressive":
        network = bundle.autoregressive or autoregressive_baseline(bundle.denoiser())
        return lambda: _drain(LeftToRight(network), network, workload)
    bundle = bundle.at_budget(workload.nfe)
    if method not in FLOORS:
        reads = find_sampler(method, bundle.process.name).reads
        options = SamplingOptions(
            method,
            guidance=workload.guidance if method == "guided" else None,
            is_whole_batch=is_whole_batch and "is_whole_batch" in reads,
        )
        sampler = make_sampler(bundle, options, workload.nfe)
        return lambda: _drain(sampler, bundle.denoiser(), workload)
    recorded = traced or trace(bundle, TRACED[method], workload, is_whole_batch=is_whole_batch)
    if method == "passes":
        return lambda: _passes_with_head(bundle, recorded, workload)
    return lambda: _passes(bundle, recorded.shapes, workload)


@torch.no_grad()
def _drain(sampler: Sampler, network: DenoiserNetwork | AutoregressiveLM, workload: Workload) -> Tensor:
    """Sample one batch."""
    device = next(iter(network.parameters())).device
    canvas = Canvas.blank(workload.batch_size, workload.length, device)
    z = canvas.tokens
    noise = SequenceNoise(SEED, range(workload.batch_size), device)
    for step in sampler(canvas, time_grid(workload.nfe), noise):
        z = step.z
    return z


def timed(draw: Callable[[], object], bundle: Bundle) -> float:
    """Wall time of ``draw`` in seconds; on a GPU, queued work is waited for before and after."""
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
    """Network passes of one run of a sampler.

    Attributes:
        seconds: time spent in each part, in seconds.
        shapes: (network, number of rows, whether with gradients) of every pass, in order.
        head_rows: number of positions at which the vocabulary head was evaluated after each trunk pass.
        whole: wall time of the run in seconds.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    shapes: list[tuple[str, int, bool]] = field(default_factory=list)
    head_rows: list[int] = field(default_factory=list)
    whole: float = math.nan

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the time by part; ``rest`` is the time outside the recorded parts. They sum to 1."""
        shares = {part: seconds / self.whole for part, seconds in self.seconds.items()}
        return shares | {"rest": 1 - sum(shares.values())}


def trace(bundle: Bundle, method: Method, workload: Workload, *, is_whole_batch: bool = False) -> Trace:
    """Run a sampler once and record its network passes."""
    bundle = bundle.at_budget(workload.nfe)
    draw = draw_function(bundle, method, workload, is_whole_batch=is_whole_batch)
    with _recording(bundle) as recorded:
        recorded.whole = timed(draw, bundle)
    return recorded


@contextlib.contextmanager
def _recording(bundle: Bundle) -> Iterator[Trace]:
    """Record time and shape of each network pass within the context, by wrapped methods."""
    recorded, denoiser, discriminator = Trace(), bundle.denoiser(), bundle.discriminator
    parts: list[tuple[Any, str, str]] = [
        (denoiser, "features", "trunk"),
        (denoiser, "head", "head"),
        (TokenDistribution, "sample", "draw"),
    ]
    if discriminator is not None:
        parts += [(discriminator, "from_embeddings", "discriminator"), (torch.autograd, "grad", "discriminator")]

    def wrap(owner: Any, name: str, part: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        def wrapper(*args: Any, **options: Any) -> Any:
            if name in ("features", "from_embeddings"):
                recorded.shapes.append((part, len(args[0]), torch.is_grad_enabled()))
            if name == "features":
                recorded.head_rows.append(0)
            elif name == "head":
                recorded.head_rows[-1] += math.prod(args[0].shape[:-1])
            result: list[Any] = []
            elapsed = timed(lambda: result.append(original(*args, **options)), bundle)
            recorded.seconds[part] = recorded.seconds.get(part, 0.0) + elapsed
            return result[0]

        return wrapper

    with contextlib.ExitStack() as stack:
        for owner, name, part in parts:
            replaced = vars(owner).get(name)  # None if the attribute is inherited from the class
            setattr(owner, name, wrap(owner, name, part))
            if replaced is None:
                stack.callback(delattr, owner, name)
            else:
                stack.callback(setattr, owner, name, replaced)
        yield recorded


def _passes(bundle: Bundle, shapes: Sequence[tuple[str, int, bool]], workload: Workload) -> None:
    """The recorded passes; a discriminator pass with gradients is made twice, in place of its backward pass."""
    denoiser, discriminator = bundle.denoiser(), bundle.discriminator
    device = next(iter(denoiser.parameters())).device
    with torch.inference_mode():
        for part, rows, has_gradient in shapes:
            z = torch.zeros(rows, workload.length, dtype=torch.long, device=device)
            if part == "trunk" or discriminator is None:
                features_with(denoiser, z, codes=torch.zeros_like(z) if num_codes(denoiser) else None)
                continue
            for _ in range(1 + has_gradient):
                discriminator(z, None)


@torch.inference_mode()
def _passes_with_head(bundle: Bundle, recorded: Trace, workload: Workload) -> None:
    """The recorded passes of the trunk, each with the head at every position that is predicted."""
    denoiser, process = bundle.denoiser(), bundle.process
    device = next(iter(denoiser.parameters())).device
    level = process.noise_level(denoiser, torch.full((1,), 0.5, dtype=torch.float64, device=device))
    trunk = [rows for part, rows, _ in recorded.shapes if part == "trunk"]
    for rows, num_read in zip(trunk, recorded.head_rows, strict=True):
        z = torch.zeros(rows, workload.length, dtype=torch.long, device=device)
        codes, levels = (
            torch.zeros_like(z) if num_codes(denoiser) else None,
            None if level is None else level.expand(rows),
        )
        features = features_with(denoiser, z, levels, codes=codes).flatten(0, 1)
        # Without a mask all positions are predicted. Sequences that share a state share a trunk pass, so there may be
        # more predictions than features.
        num = len(features) if process.mask_id is None else num_read
        for begin in range(0, num, ROWS):
            denoiser.head(features[torch.arange(begin, min(begin + ROWS, num), device=device) % len(features)])
