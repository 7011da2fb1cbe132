"""The figures of docs/results/tiny-news.md: quality, times, and the page.

    python benchmarks/tiny_news.py measure --model tiny-news --baseline RUN/bundle --cells DIR
                                           [--share 0/2] [--roles data teacher] [--samplers guided]
    python benchmarks/tiny_news.py time    --model tiny-news --baseline RUN/bundle --cells DIR
    python benchmarks/tiny_news.py page    [--cells DIR]

``measure`` keeps the result of each cell as a file, so that it can be interrupted, resumed and shared by processes.
``page`` updates the tables and figures of the page, from the cells or from the stored results. Settings were chosen
with neither the seed of the samples nor the split of the data rows.
"""

import argparse
import functools
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pages import DOCS, renew
from tiny_news_cells import (
    DATA,
    LENGTH,
    SWEPT,
    TEACHER_128,
    TIMED_ROUNDS,
    Cell,
    Timing,
    cells,
)
from tiny_news_tables import against_autoregressive, showcase, sweep_table, timing_table, verdicts
from torch import Tensor

import didi
from didi.data.source import open_source
from didi.evaluation.anchors import ANCHORS, CORPUS_TEXTS, anchor_sets
from didi.evaluation.figure import frontier_figure, latency_figure, perplexity_figure
from didi.evaluation.judges import load_judge
from didi.evaluation.machine import machine_name
from didi.evaluation.report import rows_table
from didi.evaluation.row import EvaluationRow
from didi.evaluation.row import measure as measure_set
from didi.files import write_atomically
from didi.models.bundle import ROLES
from didi.models.nelbo import nats_per_token
from didi.sampling.guided import Guidance
from didi.sampling.prompt import decode

SEED = 20_263
NUM_SAMPLES = 256
# Chosen on validation seeds: docs/lab-notes.md.
GUIDANCE = Guidance(tilted_fraction=0.0, num_candidates=4, reduction="masked-mean", select="best")
JUDGE = "smollm2-135m"
RESULTS = DOCS / "results"
ALL_SAMPLERS = ("ancestral", "guided")
ALL_ROLES = ("data", *ANCHORS, "teacher", "student", "autoregressive")


# ----------------------------------------------------------------------------------------------------------------- #
# Measuring


def models(args: argparse.Namespace) -> tuple[didi.Bundle, didi.Bundle, dict[str, str]]:
    """The bundle, that of the baseline, and digests of networks, tokenizer and guidance; refuses unequal tokenizers."""
    bundle, baseline = didi.load(args.model), didi.load(args.baseline)
    if bundle.tokenizer.to_str() != baseline.tokenizer.to_str():
        sys.exit(f"{args.model} and {args.baseline} have different tokenizers: train the baseline on the same tokens")
    digests = {"tokenizer": hashlib.sha256(bundle.tokenizer.to_str().encode()).hexdigest()[:16]}
    digests["guidance"] = str(GUIDANCE)
    for source in (bundle, baseline):
        for role in ROLES:
            if (network := getattr(source, role)) is not None:
                digest = hashlib.sha256()
                for value in network.state_dict().values():
                    digest.update(value.contiguous().numpy().tobytes())
                digests[role] = digest.hexdigest()[:16]
    return bundle, baseline, digests


def measure(args: argparse.Namespace) -> None:
    bundle, baseline, digests = models(args)
    judge = load_judge(JUDGE)
    source = open_source("news", length=LENGTH, tokenizer=bundle.tokenizer)
    test = source.test

    @functools.cache
    def real() -> dict[str, Tensor]:
        order = torch.randperm(
            len(test), generator=torch.Generator().manual_seed(SEED)
        )  # neighbouring rows are similar
        return {"data": test[order[:NUM_SAMPLES]]} | anchor_sets(source, NUM_SAMPLES, seed=SEED)

    @functools.cache
    def nats(role: str) -> float:
        network = (baseline if role == "autoregressive" else bundle).network(role)
        return nats_per_token(network, bundle.process, test, batch_size=32)

    number, of = map(int, args.share.split("/"))
    for cell in [cell for cell in cells() if cell.role in args.roles and cell.sampler in args.samplers][number::of]:
        file = args.cells / f"{cell.name}.json"
        used = {name: digests[name] for name in cell.depends_on}
        if file.is_file() and json.loads(file.read_text("utf-8"))["models"] == used:
            continue
        if not cell.nfe:
            tokens = real()[cell.role]
            texts = decode(bundle, tokens)
            scores = judge.score(texts, tokens)
            row = measure_set(
                cell.role, "", 0, tokens, scores, judge=judge.name, seconds=math.nan, network_passes=0.0, seed=SEED
            )
        else:
            texts = []
            (row,) = didi.evaluate(
                baseline if cell.role == "autoregressive" else bundle,
                nfe=[cell.nfe],
                num_samples=NUM_SAMPLES,
                judge=judge,
                role=cell.role,
                sampler=cell.sampler,
                seed=SEED,
                options=didi.SamplingOptions(temperature=cell.temperature, guidance=guidance_of(cell)),
                on_set=lambda sample_set, texts=texts: texts.extend(sample_set.texts),
            )
            # Times are measured by ``time``; other processes may be running here.
            row = replace(row, nelbo=nats(cell.role), seconds_per_sequence=math.nan, tokens_per_second=math.nan)
        write(file, {"models": used, "row": row.record(), "texts": [] if cell.role in CORPUS_TEXTS else texts[:2]})
        print(f"{cell.name}: perplexity {row.gen_ppl:.1f}, entropy {row.entropy:.3f}", flush=True)


def guidance_of(cell: Cell) -> Guidance | None:
    """Settings of guidance for a guided cell; None for other samplers, which refuse them."""
    return GUIDANCE if cell.sampler == "guided" else None


def time_cells(args: argparse.Namespace) -> None:
    """Measure seconds per sequence at temperature 1 in interleaved rounds, each with every cell once."""
    bundle, baseline, digests = models(args)
    timed = [cell for cell in cells() if cell.nfe and cell.temperature == 1]
    seconds: Timing = {cell.name: {str(size): [] for size in TIMED_ROUNDS} for cell in timed}
    for size, num_rounds in TIMED_ROUNDS.items():
        for number in range(num_rounds + 1):
            for cell in timed:
                model = baseline if cell.role == "autoregressive" else bundle
                begin = time.perf_counter()
                options = didi.SamplingOptions(role=cell.role, sampler=cell.sampler, guidance=guidance_of(cell))
                didi.generate(model, num_samples=size, nfe=cell.nfe, seed=number, options=options)
                if number:  # the first round warms up
                    seconds[cell.name][str(size)].append((time.perf_counter() - begin) / size)
    write(args.cells / "timing.json", {"models": digests, "machine": machine_name(), "seconds": seconds})


def write(file: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, atomically."""
    write_atomically(file, json.dumps(record, indent=1, allow_nan=False) + "\n")


# ----------------------------------------------------------------------------------------------------------------- #
# Writing the page


def models_of(cells_by_name: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Digests of the networks that the figures depend on, by role."""
    return {role: digest for cell in cells_by_name.values() for role, digest in cell["models"].items()}


def page(args: argparse.Namespace) -> None:
    stored = RESULTS / "tiny-news.json"
    if args.cells:
        record = {cell.name: json.loads((args.cells / f"{cell.name}.json").read_text("utf-8")) for cell in cells()}
        timing = json.loads((args.cells / "timing.json").read_text("utf-8"))
        if len({used for cell in record.values() for used in cell["models"].items()}) > len(models_of(record)):
            sys.exit(f"{args.cells} holds figures of different models: measure them again")
        write(stored, {"cells": record, "timing": timing})
    record = json.loads(stored.read_text("utf-8"))
    timing = record["timing"]["seconds"]
    is_timed = models_of(record["cells"]).items() <= record["timing"]["models"].items()
    rows = {name: EvaluationRow.from_record(cell["row"]) for name, cell in record["cells"].items()}
    timing = {name: by_size for name, by_size in timing.items() if name in rows}
    for name, by_size in timing.items():
        seconds = statistics.median(by_size[str(max(TIMED_ROUNDS))])
        rows[name] = replace(rows[name], seconds_per_sequence=seconds, tokens_per_second=LENGTH / seconds)
    machine = record["timing"]["machine"]
    rows = {name: replace(row, machine=machine) for name, row in rows.items()}
    at_one = [row for row in rows.values() if row.temperature == 1]
    kinds = {(cell.role, cell.sampler, cell.nfe) for cell in (*SWEPT, TEACHER_128)}
    swept = [row for row in rows.values() if (row.role, row.sampler, row.nfe) in kinds]
    drawn = [row for row in at_one if row.role not in ANCHORS]  # anchors would stretch the axes
    perplexity_figure(drawn, RESULTS / "tiny-news.png")
    latency_figure(drawn, RESULTS / "tiny-news-latency.png")
    frontier_figure([*swept, rows[DATA.name]], RESULTS / "tiny-news-frontier.png")
    parts = [
        "## Perplexity against passes (the paper's Figure 1)\n",
        "![Perplexity and entropy against NFE](tiny-news.png)\n",
        rows_table(at_one, recipe="tiny-news"),
        "## Perplexity against time (the paper's Figure 3)\n",
        "![Perplexity against seconds per sequence](tiny-news-latency.png)\n",
        *timing_table(rows, timing),
        *([] if is_timed else ["\nTimes were measured with earlier networks of the same shapes."]),
        "\n## Perplexity against entropy: temperature sweeps\n",
        "![Perplexity against entropy](tiny-news-frontier.png)\n",
        *sweep_table(swept),
        "\n## The first text of each generated set\n",
        *showcase(rows, record["cells"]),
        "## Claims fixed before the measurement\n",
        *verdicts(rows),
        "",
        *against_autoregressive(rows, timing),
    ]
    renew(RESULTS / "tiny-news.md", "tiny_news.py", parts)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("measure", measure), ("time", time_cells), ("page", page)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--cells", type=Path, required=name != "page")
        if name != "page":
            command.add_argument("--model", default="tiny-news")
            command.add_argument("--baseline", required=True, help="bundle of didi pretrain tiny-news-ar")
        if name == "measure":
            command.add_argument("--share", default="0/1", help="K/N: every Nth cell from the Kth on")
            command.add_argument("--roles", nargs="+", choices=ALL_ROLES, default=ALL_ROLES)
            command.add_argument("--samplers", nargs="+", choices=ALL_SAMPLERS, default=ALL_SAMPLERS)
    args = parser.parse_args(words)
    if args.cells:
        args.cells.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # two shares can run on two cores; times are those of one core
    args.run(args)


if __name__ == "__main__":
    main()
