"""Time of sampling and of distillation steps at paper scale on a GPU, with random weights.

Sampling: 16 moves of ``owt-169m`` at L = 1024 in bfloat16, plain and compiled with a CUDA graph, compared within rounds
with the bare passes of the trunk and with the autoregressive baseline, run by ``transformers`` with a growing cache and
with a static cache in CUDA graphs. (The published algorithm is left out, since it would draw 16 times 51 million
uniforms a sequence on the CPU.) Distillation: seconds and peak memory of a step that updates discriminator and student.
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from decode import StaticDecoder

from didi.apps.bench import random_bundle
from didi.data.source import open_source
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.evaluation.speed import Method, Workload, autoregressive_baseline, draw_function, trace
from didi.evaluation.speed_row import ratio
from didi.files import write_atomically
from didi.methods.base import Inputs
from didi.models.bundle import Bundle
from didi.models.dit import DiT
from didi.models.inference import for_inference
from didi.process_group import default_device, synchronize
from didi.recipes import DISTILL, teacher_shape
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import time_grid
from didi.training.trainer import make_trainer

ROUNDS, NFE = 5, 16
Draw = Callable[[], object]


def timed(work: Draw, device: torch.device) -> float:
    """Seconds of one run, until the device has finished."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def draw_functions(bundle: Bundle, batch_size: int, device: torch.device) -> dict[str, Draw]:
    """The functions to time for a batch size, by name; each draws one batch or makes its bare passes."""
    length = bundle.denoiser().length
    workload = Workload(batch_size, length, NFE)
    plain, graphed = (for_inference(bundle, "bfloat16", is_compiled=is_compiled) for is_compiled in (False, True))
    draws: dict[str, Draw] = {}
    for name, variant, is_whole in (("plain", plain, False), ("graphed", graphed, True)):
        methods: tuple[Method, ...] = ("ancestral", "trunk")
        traced = trace(variant, "ancestral", workload, is_whole_batch=is_whole)
        for method in methods:
            draws[f"{method}, {name}"] = draw_function(
                variant, method, workload, is_whole_batch=is_whole, traced=traced
            )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        decoder = StaticDecoder(autoregressive_baseline(bundle.denoiser()), batch_size, dtype)
    draws["autoregressive, static cache in graphs"] = lambda: decoder(
        SequenceNoise(0, range(batch_size)).uniforms(length)
    )
    return draws


def sampling(bundle: Bundle, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Seconds of every method in each round, ratios to the bare passes and to the autoregressive model."""
    draws = draw_functions(bundle, batch_size, device)
    for draw in draws.values():
        timed(draw, device)
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(ROUNDS):
        for name, draw in draws.items():
            seconds[name].append(timed(draw, device))
    floor, best = seconds["trunk, graphed"], seconds["ancestral, graphed"]
    left_to_right = seconds["autoregressive, static cache in graphs"]
    shares = trace(bundle, "ancestral", Workload(batch_size, bundle.denoiser().length, NFE)).shares
    return {
        "seconds": seconds,
        "ancestral over bare passes, graphed": ratio(best, floor),
        "autoregressive over ancestral, graphed": ratio(left_to_right, best),
        "shares of a plain float32 run": shares,
    }


def waits(bundle: Bundle, device: torch.device) -> str:
    """Check that moves of the ancestral sampler do not make the host wait for the device; ``none``, or the error."""
    network = bundle.denoiser()
    canvas = Canvas.blank(4, network.length, device)
    moves = Ancestral(network, bundle.process)(canvas, time_grid(NFE), SequenceNoise(0, range(4), device))
    next(moves)  # before the first move the state is copied to the host, where the moves are planned
    torch.cuda.set_sync_debug_mode("error") if device.type == "cuda" else None
    try:
        for _ in moves:
            pass
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default") if device.type == "cuda" else None
    return "none"


def growing_cache(bundle: Bundle, device: torch.device) -> dict[str, float]:
    """Seconds of one sequence by ``transformers`` with a growing cache, float32 weights under bfloat16 autocast."""
    draw = draw_function(bundle, "autoregressive", Workload(1, bundle.denoiser().length, NFE))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return {"seconds": timed(draw, device)}


def distillation(recipe: str, device: torch.device, *, is_toy: bool) -> dict[str, Any]:
    """Seconds and peak memory of steps that update discriminator and student, and of warm-up steps."""
    shape, base = replace(teacher_shape(recipe), dropout=0.0), DISTILL[recipe]
    if is_toy:
        shape = replace(shape, length=32, vocab_size=64, mask_id=63)
    loop = replace(base.loop, steps=8, batch_size=2 if is_toy else base.loop.batch_size)
    config = replace(
        base,
        data=replace(base.data, length=shape.length),
        loop=loop,
        discriminator=replace(base.discriminator, warmup_steps=4, guidance_steps=0),
    )
    source = open_source("markov", length=shape.length)
    source.vocab_size = shape.vocab_size
    torch.manual_seed(0)
    teacher = Bundle(teacher=DiT(shape).to(device).eval())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    job = make_trainer(config, Inputs(source, device, Path(tempfile.gettempdir()), teacher))
    seconds = {"warm-up": [], "student": []}
    for step in range(job.num_steps):
        seconds["warm-up" if step < 4 else "student"].append(timed(lambda step=step: job.step(step), device))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    del job, teacher
    gc.collect()
    return {
        "seconds": {name: sorted(times[1:]) for name, times in seconds.items()},
        "peak_gib": peak,
        "batch_size": loop.batch_size,
        "length": shape.length,
    }


def tasks(device: torch.device, *, is_toy: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The measurements, the most important first, since the time may not suffice for all."""
    with device:  # initial weights are drawn there: on the CPU that takes seconds
        bundle = random_bundle("markov" if is_toy else "owt-169m")
    bundle = replace(bundle, discriminator=None)
    yield "waits of the ancestral sampler", lambda: {"found": waits(bundle, device)}
    for batch_size in (1, 2) if is_toy else (1, 64, 8):
        yield f"sampling, batch {batch_size}", lambda size=batch_size: sampling(bundle, size, device)
    recipes = ("markov",) if is_toy else ("owt-169m", "owt-424m")
    for recipe in recipes:
        yield f"distillation, {recipe}", lambda name=recipe: distillation(name, device, is_toy=is_toy)
    yield "autoregressive, growing cache, batch 1", lambda: growing_cache(bundle, device)


def measure(seconds: float, partial: Path, *, is_toy: bool) -> dict[str, Any]:
    """Make as many measurements as fit ``seconds``; each is written to ``partial`` as soon as it is finished."""
    begin, device = time.monotonic(), default_device()
    results: dict[str, Any] = {}
    for name, task in tasks(device, is_toy=is_toy):
        if time.monotonic() - begin > 0.9 * seconds:
            break
        start = time.monotonic()
        try:
            results[name] = task() | {"took": round(time.monotonic() - start, 1)}
        except Exception as error:  # a failure, for example out of memory, does not stop the other measurements
            results[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(name, json.dumps(results[name])[:400], flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        write_atomically(partial, json.dumps(results))
    return results
