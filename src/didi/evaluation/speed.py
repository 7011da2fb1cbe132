"""Time and memory of sampling: a sampler beside the passes it cannot avoid, the published algorithm and an AR model.

All contestants take turns within one run, so slow minutes of a shared machine meet them all; what is told are ratios of
the same round. The shares of a sampler's time and its peak memory come from runs of their own.
"""

import contextlib
import math
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.evaluation.speed_row import SpeedRow, ratio
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.dit import DiT
from didi.models.inference import Numerics, for_inference
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
PLAIN_ONLY = ("published", "autoregressive")  # what others are compared with, in the first variant alone
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


def compare(
    bundle: Bundle,
    loads: Sequence[Load],
    *,
    methods: Sequence[Method],
    variants: Sequence[Variant] = (Variant(),),
    rounds: int = 5,
    load_bundle: Callable[[], Bundle] | None = None,
    on_round: Callable[[Load, int], None] | None = None,
) -> list[SpeedRow]:
    """Time the methods side by side under each load.

    Args:
        bundle: its generator, discriminator and autoregressive network take part; a twin of random weights stands in
            for the latter.
        loads: batches to draw.
        methods: contestants; those that need a network the bundle lacks are refused.
        variants: how the networks run; the published algorithm and the autoregressive model run as the first says.
        rounds: timed rounds, after one of few moves that warms up.
        load_bundle: makes the same bundle in a process of its own (it must be picklable), to measure peak memory;
            without it memory is not measured.
        on_round: called before every round.

    Raises:
        UsageError: a method needs a network that the bundle lacks.
    """
    bundles = {
        variant: for_inference(bundle, variant.numerics, is_compiled=variant.is_compiled) for variant in variants
    }
    entries = [
        (method, variant)
        for number, variant in enumerate(variants)
        for method in methods
        if number == 0 or method not in PLAIN_ONLY
    ]
    rows = []
    for load in loads:
        if on_round is not None:
            on_round(load, 0)
        brief = replace(load, nfe=min(2, load.nfe))
        contestants: dict[tuple[Method, Variant], Callable[[], object]] = {}
        traces: dict[tuple[Method, Variant], Trace] = {}
        for method, variant in entries:
            one, whole = bundles[variant], variant.is_compiled
            sampler = SAMPLER.get(method, method)
            contestant(one, sampler, brief, is_whole_batch=whole)()
            if sampler in SAMPLER.values() and (sampler, variant) not in traces:
                traces[sampler, variant] = trace(one, sampler, load, is_whole_batch=whole)
            contestants[method, variant] = contestant(
                one, method, load, is_whole_batch=whole, traced=traces.get((sampler, variant))
            )
        seconds: dict[tuple[str, Variant], list[float]] = {entry: [] for entry in entries}
        for number in range(1, rounds + 1):
            if on_round is not None:
                on_round(load, number)
            for entry, draw in contestants.items():
                seconds[entry].append(_timed(draw, bundle))
        published = seconds.get(("published", variants[0]))
        for method, variant in entries:
            own, floor = seconds[method, variant], seconds.get((FLOOR.get(method, ""), variant))
            rows.append(
                SpeedRow(
                    method=method,
                    variant=str(variant),
                    batch_size=load.batch_size,
                    length=load.length,
                    nfe=load.length if method == "autoregressive" else load.nfe,
                    seconds=tuple(own),
                    over_floor=ratio(own, floor) if floor else None,
                    speedup=ratio(published, own) if published else None,
                    peak_mib=math.nan
                    if load_bundle is None or method in FLOOR.values()
                    else peak_memory(load_bundle, method, load, variant),
                    shares=traces[method, variant].shares if (method, variant) in traces else {},
                )
            )
    return rows


def contestant(
    bundle: Bundle, method: Method, load: Load, *, is_whole_batch: bool = False, traced: "Trace | None" = None
) -> Callable[[], object]:
    """The work of a method, ready to be run and timed.

    Args:
        bundle: networks.
        method: which.
        load: how much.
        is_whole_batch: the ancestral sampler sees one shape only, as a compiled network wants it.
        traced: a run of the sampler whose floor is asked for; made here if it is not given.

    Raises:
        UsageError: the bundle lacks a network that the method needs.
    """
    if method == "autoregressive":
        network = bundle.autoregressive or twin(bundle.denoiser())
        return lambda: _drain(LeftToRight(network), network, load)
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


def _timed(draw: Callable[[], object], bundle: Bundle) -> float:
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
    """What a sampler asked of its networks in one run.

    Attributes:
        seconds: time in each part.
        shapes: (network, rows, whether a gradient was asked for) of every pass, in order.
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
    """One watched run of a sampler."""
    draw = contestant(bundle, method, load, is_whole_batch=is_whole_batch)
    with _watched(bundle) as seen:
        seen.whole = _timed(draw, bundle)
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
        asked = getattr(owner, name)

        def asking(*args: Any, **options: Any) -> Any:
            if name in ("features", "from_embeddings"):
                seen.shapes.append((part, len(args[0]), torch.is_grad_enabled()))
            answer: list[Any] = []
            elapsed = _timed(lambda: answer.append(asked(*args, **options)), bundle)
            seen.seconds[part] = seen.seconds.get(part, 0.0) + elapsed
            return answer[0]

        return asking

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


def peak_memory(load_bundle: Callable[[], Bundle], method: Method, load: Load, variant: Variant) -> float:
    """MiB that one batch needs above the weights, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (load_bundle, method, load, variant, torch.get_num_threads()))


def _peak(load_bundle: Callable[[], Bundle], method: Method, load: Load, variant: Variant, num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    bundle = for_inference(load_bundle(), variant.numerics, is_compiled=variant.is_compiled)
    draw = contestant(bundle, method, load, is_whole_batch=variant.is_compiled)
    if next(iter(bundle.network().parameters())).device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        draw()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reset = Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError):  # elsewhere the peak of loading counts as well
        reset.write_text("5")
    loaded = _resident_mib("VmRSS")
    draw()
    return _resident_mib("VmHWM") - loaded


def _resident_mib(name: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux; the peak only, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**10
