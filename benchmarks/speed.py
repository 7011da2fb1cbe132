"""The figures of docs/speed.md: time of sampling compared with bare passes, published code and autoregressive models.

    python benchmarks/speed.py measure --runs DIR [--suites tiny cost]
    python benchmarks/speed.py page    [--runs DIR]

``measure`` makes one run of ``didi bench`` for each suite and keeps its result, so that it can be interrupted and
resumed; nothing else should run on the machine. ``page`` updates the tables and the figure of the page, from the runs
and, for suites that were not run again, from the stored results.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pages import DOCS, renew, write_json

import didi
from didi.apps.bench import bench
from didi.data.source import open_source
from didi.evaluation.machine import machine_name
from didi.evaluation.speed_row import Ratio, SpeedRow, ratio, speed_table
from didi.files import replacing, write_atomically
from didi.markdown import markdown_table
from didi.models.inference import for_inference
from didi.models.nelbo import nats_per_token

STORED = DOCS / "results" / "speed.json"
GUIDED = "--model tiny-news --nfe 16 --batch-size 16 --rounds 9 --methods ancestral guided"

# Each suite is one run of ``didi bench``, so that all times that are compared were measured in interleaved rounds.
SUITES = {
    "paper scale, one sequence": "--model owt-169m --nfe 16 --batch-size 1 --network float32 int8 --compile --rounds 3",
    "paper scale, one sequence, against the bare passes": "--model owt-169m --nfe 16 --batch-size 1 --rounds 9"
    " --no-memory --methods ancestral",
    "paper scale, one sequence, 8 NFE": "--model owt-169m --nfe 8 --batch-size 1 --rounds 3 --no-memory"
    " --methods ancestral autoregressive",
    "paper scale, four sequences": "--model owt-169m --nfe 16 --batch-size 4 --rounds 2",
    "paper scale, sixteen sequences": "--model owt-169m --nfe 16 --batch-size 16 --rounds 1 --no-memory"
    " --methods ancestral autoregressive",
    "tiny": "--model tiny-news --nfe 16 --batch-size 64 --network float32 int8 --rounds 5",
    "guided, 8 candidates": f"{GUIDED} --guidance.tilted-fraction 0 --guidance.num-candidates 8",
    "guided, 4 candidates": f"{GUIDED} --guidance.tilted-fraction 0 --guidance.num-candidates 4",
    "guided, as by default": f"{GUIDED} --guidance.tilted-fraction 0.25 --guidance.num-candidates 4",
    "guided, tilted": f"{GUIDED} --guidance.tilted-fraction 0.5 --guidance.num-candidates 4",  # the paper's
    "cost": "--model tiny-news --nfe 4 8 16 32 64 --batch-size 1 4 16 --rounds 3 --methods ancestral --no-memory",
}


NOT_MEASURED = SpeedRow("", 1, 1, 1, ())


def measure(args: argparse.Namespace) -> None:
    for name in args.suites or SUITES:
        if not (args.runs / name / "bench.json").is_file():
            print(f"{name}: didi bench {SUITES[name]}", flush=True)
            bench([*SUITES[name].split(), "--out", str(args.runs / name)])
    quality = args.runs / "nelbo.json"
    if not quality.is_file():
        bundle = didi.load("tiny-news")
        rows = open_source("news", length=128, tokenizer=bundle.tokenizer).validation
        nats = {
            f"{role}, {numerics}": nats_per_token(
                for_inference(bundle, numerics).network(role), bundle.process, rows, batch_size=32
            )
            for role in ("teacher", "student")
            for numerics in ("float32", "bfloat16", "int8")
        }
        record = {"nats": nats, "sequences": len(rows), "machine": machine_name()}
        write_atomically(quality, json.dumps(record))


def page(args: argparse.Namespace) -> None:
    if args.runs:
        files = {name: args.runs / name / "bench.json" for name in SUITES}
        measured = {
            name: {"command": f"didi bench {SUITES[name]}"} | json.loads(file.read_text("utf-8"))
            for name, file in files.items()
            if file.is_file()
        }
        quality = json.loads((args.runs / "nelbo.json").read_text("utf-8"))
        suites = (json.loads(STORED.read_text("utf-8"))["suites"] if STORED.is_file() else {}) | measured
        suites = {name: suites[name] for name in SUITES if name in suites}
        write_json(STORED, {"suites": suites, "nelbo": quality})
    record = json.loads(STORED.read_text("utf-8"))
    suites = {name: [SpeedRow.from_record(row) for row in run["rows"]] for name, run in record["suites"].items()}
    if "cost" in suites:
        cost_figure(suites["cost"], DOCS / "results" / "speed.png")
    lines = ["## NELBO of the cheaper networks\n", *nelbo_table(record["nelbo"])]
    for name, run in record["suites"].items():
        lines += [f"\n## {name[0].upper()}{name[1:]}\n", f"`{run['command']}`\n"]
        lines.append(speed_table(suites[name], model=run["model"], machine=run["machine"]))
        if name == "cost":
            lines.append("\n![Seconds against passes and batch size](results/speed.png)")
    lines += ["\n## Claims fixed before the measurement\n", *verdicts(suites)]
    renew(DOCS / "speed.md", "speed.py", lines)


def row_of(rows: Sequence[SpeedRow], method: str, variant: str = "float32") -> SpeedRow:
    return next((row for row in rows if (row.method, row.variant) == (method, variant)), NOT_MEASURED)


def verdicts(suites: dict[str, list[SpeedRow]]) -> list[str]:
    """Lines of the table of claims."""
    return markdown_table(["claim", "figure", "bound", "holds"], claims(suites), align="lrrl")


def claims(suites: dict[str, list[SpeedRow]]) -> Iterator[list[str]]:
    """Yields each claim, its figure, its bound, and whether it holds."""

    def claim(text: str, figure: Ratio | None, bound: float, *, is_upper: bool) -> list[str]:
        limit = "–" if math.isnan(bound) else f"{'≤' if is_upper else '≥'} {bound:g}"
        if figure is None:
            return [text, "–", limit, "not measured"]
        holds = figure[0] <= bound if is_upper else figure[0] >= bound
        verdict = "no bound" if math.isnan(bound) else "yes" if holds else "**no**"
        return [text, in_words(figure), limit, verdict]

    def row(suite: str, method: str, variant: str = "float32") -> SpeedRow:
        return row_of(suites.get(suite, []), method, variant)

    for name in ("paper scale, one sequence", "paper scale, four sequences"):
        ancestral, published = row(name, "ancestral"), row(name, "published")
        alone = row(f"{name}, against the bare passes", "ancestral")  # a suite with more rounds for this comparison
        over = ancestral.over_floor if alone is NOT_MEASURED else alone.over_floor
        yield claim(f"{name}, 16 NFE: time over the bare passes", over, 1.05, is_upper=True)
        yield claim(f"{name}, 16 NFE: speed over the published algorithm", ancestral.speedup, 1.9, is_upper=False)
        memory = ancestral.peak_mib / published.peak_mib
        figure = None if math.isnan(memory) else (memory,) * 3
        yield claim(f"{name}: peak memory over the published algorithm's", figure, 0.25, is_upper=True)
    int8 = row("paper scale, one sequence", "ancestral", "int8").speedup
    yield claim("int8: speed over float32 published", int8, 3, is_upper=False)
    tiny = row("tiny", "ancestral").speedup
    yield claim("tiny, 64 sequences: speed over the published algorithm", tiny, 4, is_upper=False)
    for name in [name for name in SUITES if name.startswith("guided")]:
        over = row(name, "guided").over_floor
        yield claim(f"{name}, 16 NFE: time over the passes", over, 1.1, is_upper=True)
    for name, nfe, bound in (
        ("paper scale, one sequence", 16, 1.4),
        ("paper scale, one sequence, 8 NFE", 8, 2.8),
        ("paper scale, four sequences", 16, math.nan),
        ("paper scale, sixteen sequences", 16, math.nan),
    ):
        autoregressive, ancestral = row(name, "autoregressive"), row(name, "ancestral")
        text = f"{name.removesuffix(', 8 NFE')}, {nfe} NFE: speed over the autoregressive model with its cache"
        yield claim(
            text, ratio(autoregressive.seconds, ancestral.seconds) if ancestral.seconds else None, bound, is_upper=False
        )


def in_words(figure: Ratio) -> str:
    return (
        f"{figure[0]:.3g} [{figure[1]:.3g}, {figure[2]:.3g}]"
        if figure[0] >= 2
        else f"{figure[0]:.3f} [{figure[1]:.3f}, {figure[2]:.3f}]"
    )


def nelbo_table(quality: dict[str, Any]) -> list[str]:
    body = [[name, f"{nats:.4f}"] for name, nats in quality["nats"].items()]
    return [
        *markdown_table(["`tiny-news`", "NELBO, nats a token"], body),
        f"\nThe whole validation split, {quality['sequences']} sequences of 128 tokens; {quality['machine']}.",
    ]


def cost_figure(rows: Sequence[SpeedRow], path: Path) -> None:
    """Draw seconds of a batch against NFE, a line for each batch size, with dotted lines in proportion to NFE."""
    figure = Figure(figsize=(6.4, 4.0), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    ancestral = [row for row in rows if row.method == "ancestral"]
    for size in sorted({row.batch_size for row in ancestral}):
        line = [row for row in ancestral if row.batch_size == size]
        nfes = [row.nfe for row in line]
        middle = [statistics.median(row.seconds) for row in line]
        axes.plot(nfes, middle, "o-", label=f"{size} sequence{'s' * (size > 1)}")
        axes.plot(nfes, [middle[0] * nfe / nfes[0] for nfe in nfes], ":", color="0.6", linewidth=1)
    axes.set_xticks(nfes, [str(nfe) for nfe in nfes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("network function evaluations (NFE)", fontsize=9)
    axes.set_ylabel("seconds a batch", fontsize=9)
    axes.set_title("Cost of a batch; dotted: in proportion to NFE", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("measure", measure), ("page", page)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--runs", type=Path, required=name == "measure")
        if name == "measure":
            command.add_argument("--suites", nargs="+", choices=SUITES)
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
