"""The work that is timed: a sampler, the network passes that it cannot avoid, or an autoregressive model."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.dit import DiT
from didi.models.inference import Numerics
from didi.sampling.ancestral import Ancestral
from didi.sampling.autoregressive import LeftToRight
from didi.sampling.base import Sampler, time_grid
from didi.sampling.departure import Departure
from didi.sampling.guided import Guidance, Guided
from didi.sampling.published import Published

Method = Literal["ancestral", "trunk", "published", "guided", "guided floor", "autoregressive"]
FLOOR: dict[str, Method] = {"ancestral": "trunk", "published": "trunk", "guided": "guided floor"}
SAMPLER: dict[str, Method] = {
    "ancestral": "ancestral",
    "trunk": "ancestral",
    "guided": "guided",
    "guided floor": "guided",
}
SEED = 0


@dataclass(frozen=True)
class Variant:
    """How the networks run: see ``didi.models.inference.for_inference``."""

    numerics: Numerics = "float32"
    is_compiled: bool = False

    def __str__(self) -> str:
        return self.numerics + (", compiled" if self.is_compiled else "")


@dataclass(frozen=True)
class Load:
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


def twin(network: DiT) -> AutoregressiveLM:
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
    bundle: Bundle, method: Method, load: Load, *, is_whole_batch: bool = False, traced: "Trace | None" = None
) -> Callable[[], object]:
    """The work of a method, ready to be run and timed.

    Args:
        bundle: networks.
        method: which.
        load: how much.
        is_whole_batch: the ancestral sampler sees one shape only, as a compiled network wants it.
        traced: a run of the sampler whose passes are to be run; made here if it is not given.

    Raises:
        UsageError: the bundle lacks a network that the method needs.
    """
    if method == "autoregressive":
        network = bundle.autoregressive or twin(bundle.denoiser())
        return lambda: _drain(LeftToRight(network), network, load)
    bundle = bundle.at_budget(load.nfe)
    denoiser = bundle.denoiser()
    if method in ("guided", "guided floor") and bundle.discriminator is None:
        raise UsageError(f"guided sampling needs a discriminator; bundle {bundle.name} has none")
    process = bundle.process
    if not isinstance(process, Absorbing):
        raise UsageError(f"speed is measured of masked diffusion; the process of {bundle.name} is {process.name}")
    samplers: dict[str, Sampler] = {
        "ancestral": Ancestral(denoiser, process, is_whole_batch=is_whole_batch),
        "published": Published(denoiser, process, precision="float64"),
    }
    if bundle.discriminator is not None:
        samplers["guided"] = Guided(denoiser, process, bundle.discriminator, load.guidance)
    if method in samplers:
        return lambda: _drain(samplers[method], denoiser, load)
    shapes = (traced or trace(bundle, SAMPLER[method], load, is_whole_batch=is_whole_batch)).shapes
    return lambda: _passes(bundle, shapes, load)


@torch.no_grad()
def _drain(sampler: Sampler, network: DiT | AutoregressiveLM, load: Load) -> Tensor:
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
        whole: time of the run.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    shapes: list[tuple[str, int, bool]] = field(default_factory=list)
    whole: float = math.nan

    @property
    def shares(self) -> dict[str, float]:
        """Parts of the time that networks, draws and the rest take; they sum to 1."""
        found = {part: seconds / self.whole for part, seconds in self.seconds.items()}
        return found | {"rest": 1 - sum(found.values())}


def trace(bundle: Bundle, method: Method, load: Load, *, is_whole_batch: bool = False) -> Trace:
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
        (Departure, "sample", "draw"),
    ]
    if discriminator is not None:
        parts += [(discriminator, "from_embeddings", "discriminator"), (torch.autograd, "grad", "discriminator")]

    def watch(owner: Any, name: str, part: str) -> Callable[..., Any]:
        watched = getattr(owner, name)

        def watching(*args: Any, **options: Any) -> Any:
            if name in ("features", "from_embeddings"):
                seen.shapes.append((part, len(args[0]), torch.is_grad_enabled()))
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


def _passes(bundle: Bundle, shapes: Sequence[tuple[str, int, bool]], load: Load) -> None:
    """The bare passes that were recorded; one that a gradient went through counts twice."""
    denoiser, discriminator = bundle.denoiser(), bundle.discriminator
    device = next(iter(denoiser.parameters())).device
    with torch.inference_mode():
        for part, rows, has_gradient in shapes:
            z = torch.zeros(rows, load.length, dtype=torch.long, device=device)
            if part == "trunk" or discriminator is None:
                denoiser.features(z, None)
                continue
            for _ in range(1 + has_gradient):
                discriminator(z, None)
