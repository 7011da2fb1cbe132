"""Time and memory of sampling: a sampler beside the passes it cannot avoid, the published algorithm and an AR model.

All contestants take turns within one run, so slow minutes of a shared machine meet them all; what is reported are
ratios of the same round. The shares of a sampler's time and its peak memory come from runs of their own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from didi.evaluation.speed_memory import peak_memory
from didi.evaluation.speed_row import SpeedRow, ratio
from didi.evaluation.speed_work import (
    FLOORS,
    TRACED,
    Method,
    Trace,
    Variant,
    Workload,
    contestant,
    default_methods,
    floor_of,
    timed,
    trace,
    twin,
)
from didi.models.bundle import Bundle
from didi.models.inference import for_inference

__all__ = [
    "TRACED",
    "Method",
    "SpeedRow",
    "Variant",
    "Workload",
    "compare",
    "contestant",
    "default_methods",
    "floor_of",
    "peak_memory",
    "trace",
    "twin",
]

PLAIN_ONLY = ("published", "autoregressive")  # what others are compared with, in the first variant alone
Entry = tuple[Method, Variant]


def compare(
    bundle: Bundle,
    loads: Sequence[Workload],
    *,
    methods: Sequence[Method],
    variants: Sequence[Variant] = (Variant(),),
    rounds: int = 5,
    load_bundle: Callable[[], Bundle] | None = None,
    on_round: Callable[[Workload, int], None] | None = None,
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
        contestants, traces = _prepared(bundles, entries, load)
        seconds: dict[Entry, list[float]] = {entry: [] for entry in entries}
        for number in range(1, rounds + 1):
            if on_round is not None:
                on_round(load, number)
            for entry, draw in contestants.items():
                seconds[entry].append(timed(draw, bundle))
        published = seconds.get(("published", variants[0]))
        for method, variant in entries:
            peak = math.nan
            if load_bundle is not None and method not in FLOORS:
                peak = peak_memory(load_bundle, method, load, variant)
            floor = seconds.get((floor_of(method, bundle.process) or method, variant), [])
            traced = traces.get((method, variant))
            rows.append(_row((method, variant), load, seconds[method, variant], floor, published, peak, traced))
    return rows


def _prepared(
    bundles: Mapping[Variant, Bundle], entries: Sequence[Entry], load: Workload
) -> tuple[dict[Entry, Callable[[], object]], dict[Entry, Trace]]:
    """The work of each contestant, warmed up, and the traces of the samplers."""
    brief = replace(load, nfe=min(2, load.nfe))
    contestants: dict[Entry, Callable[[], object]] = {}
    traces: dict[Entry, Trace] = {}
    for method, variant in entries:
        bundle, whole = bundles[variant], variant.is_compiled
        sampler = TRACED.get(method, method)
        contestant(bundle, sampler, brief, is_whole_batch=whole)()
        if sampler in TRACED and (sampler, variant) not in traces:
            traces[sampler, variant] = trace(bundle, sampler, load, is_whole_batch=whole)
        traced = traces.get((sampler, variant))
        contestants[method, variant] = contestant(bundle, method, load, is_whole_batch=whole, traced=traced)
    return contestants, traces


def _row(
    entry: Entry,
    load: Workload,
    own: list[float],
    floor: list[float],
    published: list[float] | None,
    peak_mib: float,
    traced: Trace | None,
) -> SpeedRow:
    """The row of one contestant; ``floor`` is ``own`` for bare passes, and empty where they took no part."""
    method, variant = entry
    return SpeedRow(
        method=method,
        variant=str(variant),
        batch_size=load.batch_size,
        length=load.length,
        nfe=load.length if method == "autoregressive" else load.nfe,
        seconds=tuple(own),
        over_floor=ratio(own, floor) if floor and floor is not own else None,
        speedup=ratio(published, own) if published else None,
        peak_mib=peak_mib,
        shares=traced.shares if traced is not None else {},
    )
