"""Time and memory of sampling: samplers, their bare network passes, the published algorithm, an autoregressive model.

The methods are timed in interleaved rounds, so that a slow phase of a shared machine affects all of them; ratios
are computed within a round. The shares of a sampler's time and its peak memory are measured in separate runs.
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
    autoregressive_baseline,
    default_methods,
    draw_function,
    floor_of,
    timed,
    trace,
)
from didi.models.bundle import Bundle
from didi.models.inference import for_inference

__all__ = [
    "TRACED",
    "Method",
    "SpeedRow",
    "Variant",
    "Workload",
    "autoregressive_baseline",
    "compare",
    "default_methods",
    "draw_function",
    "floor_of",
    "peak_memory",
    "trace",
]

FIRST_VARIANT_ONLY = ("published", "autoregressive")  # baselines, which run in the first variant only
Entry = tuple[Method, Variant]


def compare(
    bundle: Bundle,
    workloads: Sequence[Workload],
    *,
    methods: Sequence[Method],
    variants: Sequence[Variant] = (Variant(),),
    rounds: int = 5,
    load_bundle: Callable[[], Bundle] | None = None,
    on_round: Callable[[Workload, int], None] | None = None,
) -> list[SpeedRow]:
    """Time the methods in interleaved rounds for each workload.

    Args:
        bundle: the model; if it has no autoregressive network, one with random weights is used
            (``autoregressive_baseline``).
        workloads: batches to draw.
        methods: methods to compare.
        variants: numerics and compilation of the networks; the published algorithm and the autoregressive model run
            in the first variant only.
        rounds: number of timed rounds, after a warm-up round of few moves.
        load_bundle: a picklable function that loads the same bundle in a separate process, in which peak memory is
            measured; without it, memory is not measured.
        on_round: called before every round.

    Raises:
        UsageError: a method needs a network that the bundle lacks, a variant is not supported (``for_inference``), or
            the system does not report peak memory.
    """
    bundles = {
        variant: for_inference(bundle, variant.numerics, is_compiled=variant.is_compiled) for variant in variants
    }
    entries = [
        (method, variant)
        for number, variant in enumerate(variants)
        for method in methods
        if number == 0 or method not in FIRST_VARIANT_ONLY
    ]
    rows = []
    for workload in workloads:
        if on_round is not None:
            on_round(workload, 0)
        draws, traces = _prepared(bundles, entries, workload)
        seconds: dict[Entry, list[float]] = {entry: [] for entry in entries}
        for number in range(1, rounds + 1):
            if on_round is not None:
                on_round(workload, number)
            for entry, draw in draws.items():
                seconds[entry].append(timed(draw, bundle))
        published = seconds.get(("published", variants[0]))
        for method, variant in entries:
            peak = math.nan
            if load_bundle is not None and method not in FLOORS:
                peak = peak_memory(load_bundle, method, workload, variant)
            floor = seconds.get((floor_of(method, bundle.process) or method, variant), [])
            traced = traces.get((method, variant))
            rows.append(_row((method, variant), workload, seconds[method, variant], floor, published, peak, traced))
    return rows


def _prepared(
    bundles: Mapping[Variant, Bundle], entries: Sequence[Entry], workload: Workload
) -> tuple[dict[Entry, Callable[[], object]], dict[Entry, Trace]]:
    """The functions to time, after a warm-up run of each, and the traces of the samplers."""
    brief = replace(workload, nfe=min(2, workload.nfe))
    draws: dict[Entry, Callable[[], object]] = {}
    traces: dict[Entry, Trace] = {}
    for method, variant in entries:
        bundle, whole = bundles[variant], variant.is_compiled
        sampler = TRACED.get(method, method)
        draw_function(bundle, sampler, brief, is_whole_batch=whole)()
        if sampler in TRACED and (sampler, variant) not in traces:
            traces[sampler, variant] = trace(bundle, sampler, workload, is_whole_batch=whole)
        traced = traces.get((sampler, variant))
        draws[method, variant] = draw_function(bundle, method, workload, is_whole_batch=whole, traced=traced)
    return draws, traces


def _row(
    entry: Entry,
    workload: Workload,
    seconds: list[float],
    floor: list[float],
    published: list[float] | None,
    peak_mib: float,
    traced: Trace | None,
) -> SpeedRow:
    """The row of one method.

    ``floor`` is the list ``seconds`` itself for a method without bare passes (``floor_of``), and empty if the bare
    passes were not timed.
    """
    method, variant = entry
    return SpeedRow(
        method=method,
        variant=str(variant),
        batch_size=workload.batch_size,
        length=workload.length,
        nfe=workload.length if method == "autoregressive" else workload.nfe,
        seconds=tuple(seconds),
        over_floor=ratio(seconds, floor) if floor and floor is not seconds else None,
        speedup=ratio(published, seconds) if published else None,
        peak_mib=peak_mib,
        shares=traced.shares if traced is not None else {},
    )
