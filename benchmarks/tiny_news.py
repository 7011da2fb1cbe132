"""The figures of docs/results/tiny-news.md: measure them, time them, and write the page.

    python benchmarks/tiny_news.py measure --model tiny-news --baseline RUN/bundle --cells DIR [--share 0/2]
    python benchmarks/tiny_news.py time    --model tiny-news --baseline RUN/bundle --cells DIR
    python benchmarks/tiny_news.py page    [--cells DIR]

``measure`` judges each cell once and keeps it as a file, so that it can be stopped, resumed and shared by processes.
``page`` renews the tables and figures of the page from the cells, or from the figures that are stored beside it.
Samples are drawn with a seed, and data rows taken from a split, that no choice of settings was made on.
"""

import argparse
import functools
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import didi
from didi.data.source import open_source
from didi.evaluation.figure import frontier_figure, latency_figure, perplexity_figure
from didi.evaluation.frontier import perplexity_at_entropy
from didi.evaluation.perplexity import load_judge
from didi.evaluation.report import markdown_table
from didi.evaluation.row import EvaluationRow
from didi.evaluation.row import measure as measure_set
from didi.sampling.generate import decode
from didi.training.pretrain import validation_nll

SEED = 20_263
NUM_SAMPLES = 256
NFES = (4, 8, 16, 32, 64, 128)
TEMPERATURES = (0.7, 0.8, 0.9, 1.1)
JUDGE = "smollm2-135m"
RESULTS = Path(__file__).parents[1] / "docs" / "results"
BEGIN, END = "<!-- written by benchmarks/tiny_news.py page: begin -->", "<!-- end -->"
TIMED_ROUNDS, TIMED_BATCHES = 3, (1, 32)


@dataclass(frozen=True)
class Cell:
    """One sample set."""

    role: str
    sampler: str = "ancestral"
    nfe: int = 0
    temperature: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.role}-{self.sampler}-{self.nfe}-{self.temperature:g}"


def cells() -> Iterator[Cell]:
    yield Cell("data")
    for nfe in NFES:
        yield from (Cell("teacher", nfe=nfe), Cell("student", nfe=nfe), Cell("student", "guided", nfe))
    yield Cell("autoregressive", nfe=128)
    for temperature in TEMPERATURES:
        yield from (
            Cell("teacher", nfe=32, temperature=temperature),
            Cell("teacher", nfe=128, temperature=temperature),
            Cell("student", nfe=8, temperature=temperature),
            Cell("student", "guided", 8, temperature),
            Cell("autoregressive", nfe=128, temperature=temperature),
        )


def measure(args: argparse.Namespace) -> None:
    bundle, baseline = didi.load(args.model), didi.load(args.baseline)
    judge = load_judge(JUDGE)
    test = open_source("news", length=bundle.denoiser().length, tokenizer=bundle.tokenizer).test
    args.cells.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def nats(role: str) -> float:
        network = (baseline if role == "autoregressive" else bundle).network(role)
        return validation_nll(network, test, bundle.schedule, batch_size=32, device=torch.device("cpu"))

    number, of = map(int, args.share.split("/"))
    for cell in list(cells())[number::of]:
        file = args.cells / f"{cell.name}.json"
        if file.is_file():
            continue
        if cell.role == "data":
            order = torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))  # neighbours are alike
            tokens = test[order[:NUM_SAMPLES]]
            texts = decode(bundle, tokens)
            row = measure_set("data", "", 0, tokens, texts, judge, seconds=math.nan, student_passes=0.0, seed=SEED)
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
                options=didi.SamplingOptions(temperature=cell.temperature),
                on_row=lambda _, shown, texts=texts: texts.extend(shown),
            )
            row = replace(row, nelbo=nats(cell.role))
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"row": asdict(row), "texts": texts[:2]}, indent=1) + "\n")
        partial.replace(file)
        print(f"{cell.name}: perplexity {row.gen_ppl:.1f}, entropy {row.entropy:.3f}", flush=True)


def time_cells(args: argparse.Namespace) -> None:
    """Seconds per sequence of every cell at temperature 1, all in each round: a busy second hits all alike."""
    bundle, baseline = didi.load(args.model), didi.load(args.baseline)
    timed = [cell for cell in cells() if cell.nfe and cell.temperature == 1]
    seconds: dict[str, dict[str, list[float]]] = {
        cell.name: {str(size): [] for size in TIMED_BATCHES} for cell in timed
    }
    for number in range(TIMED_ROUNDS + 1):
        for cell in timed:
            model = baseline if cell.role == "autoregressive" else bundle
            for size in TIMED_BATCHES:
                begin = time.perf_counter()
                didi.generate(model, num_samples=size, nfe=cell.nfe, seed=number, role=cell.role, sampler=cell.sampler)
                if number:  # the first round warms up
                    seconds[cell.name][str(size)].append((time.perf_counter() - begin) / size)
    (args.cells / "timing.json").write_text(json.dumps(seconds, indent=1) + "\n")


def page(args: argparse.Namespace) -> None:
    stored = RESULTS / "tiny-news.json"
    if args.cells:
        found = {cell.name: json.loads((args.cells / f"{cell.name}.json").read_text()) for cell in cells()}
        timing = json.loads((args.cells / "timing.json").read_text())
        stored.write_text(json.dumps({"cells": found, "timing": timing}, indent=1) + "\n")
    record = json.loads(stored.read_text())
    rows = {name: row_of(cell["row"]) for name, cell in record["cells"].items()}
    for name, by_size in record["timing"].items():
        seconds = statistics.median(by_size["32"])
        length = 128
        rows[name] = replace(rows[name], seconds_per_sequence=seconds, tokens_per_second=length / seconds)
    at_one = [row for row in rows.values() if row.temperature == 1]
    perplexity_figure(at_one, RESULTS / "tiny-news.png")
    latency_figure(at_one, RESULTS / "tiny-news-latency.png")
    sweeps = {cell.name: rows[cell.name] for cell in cells() if cell.temperature != 1}
    swept = {(row.role, row.sampler, row.nfe) for row in sweeps.values()}
    frontier = [row for row in rows.values() if (row.role, row.sampler, row.nfe) in swept or row.role == "data"]
    frontier_figure(frontier, RESULTS / "tiny-news-frontier.png")
    parts = [
        BEGIN,
        "## What was to be shown\n",
        *verdicts(rows, record["timing"]),
        "\n## Perplexity against passes (the paper's Figure 1)\n",
        "![Perplexity and entropy against NFE](tiny-news.png)\n",
        markdown_table(at_one, recipe="tiny-news"),
        "## Perplexity against time (the paper's Figure 3)\n",
        "![Perplexity against seconds per sequence](tiny-news-latency.png)\n",
        *timing_table(rows, record["timing"]),
        "\n## Perplexity against entropy: temperature sweeps\n",
        "![Perplexity against entropy](tiny-news-frontier.png)\n",
        markdown_table(sorted(frontier, key=lambda row: (row.role, row.sampler, row.nfe, row.temperature))),
        "## The first text of each set\n",
        *showcase(rows, record["cells"]),
        END,
    ]
    target = RESULTS / "tiny-news.md"
    before, _, rest = target.read_text().partition(BEGIN)
    target.write_text(before + "\n".join(parts) + rest.partition(END)[2])


def row_of(fields: dict[str, object]) -> EvaluationRow:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return EvaluationRow(**values)  # type: ignore[arg-type]


def sweep(rows: dict[str, EvaluationRow], role: str, sampler: str, nfe: int) -> list[tuple[float, float]]:
    return [
        (row.entropy, row.gen_ppl) for row in rows.values() if (row.role, row.sampler, row.nfe) == (role, sampler, nfe)
    ]


def verdicts(rows: dict[str, EvaluationRow], timing: dict[str, dict[str, list[float]]]) -> list[str]:
    data, teacher = rows[Cell("data").name], rows[Cell("teacher", nfe=128).name]
    student, guided = rows[Cell("student", nfe=8).name], rows[Cell("student", "guided", 8).name]
    autoregressive = rows[Cell("autoregressive", nfe=128).name]
    of_teacher, of_student, of_guided = (
        sweep(rows, *model)
        for model in (("teacher", "ancestral", 32), ("student", "ancestral", 8), ("student", "guided", 8))
    )
    shared = [
        (entropy, ppl / perplexity_at_entropy(of_teacher, entropy))
        for entropy, ppl in of_student
        if math.isfinite(perplexity_at_entropy(of_teacher, entropy))
    ]
    worst = max((ratio for _, ratio in shared), default=math.nan)
    gain = 1 - perplexity_at_entropy(of_guided, student.entropy) / student.gen_ppl
    meeting = [nfe for nfe in NFES if rows[Cell("student", nfe=nfe).name].gen_ppl <= autoregressive.gen_ppl]
    lines = ["| claim | figure | bound | holds |", "|---|--:|--:|---|"]

    def claim(text: str, figure: float, bound: float, *, is_upper: bool = True) -> None:
        holds = figure <= bound if is_upper else figure >= bound
        lines.append(
            f"| {text} | {figure:.3g} | {'≤' if is_upper else '≥'} {bound:.3g} | {'yes' if holds else '**no**'} |"
        )

    claim("teacher at 128 NFE: perplexity over that of held-out news", teacher.gen_ppl / data.gen_ppl, 4)
    claim("student at 8 NFE: perplexity over the teacher's at 128", student.gen_ppl / teacher.gen_ppl, 1)
    claim("the same two: entropy over the teacher's", student.entropy / teacher.entropy, 0.97, is_upper=False)
    claim(f"student at 8 NFE over teacher at 32 at equal entropy, worst of {len(shared)} points", worst, 1)
    claim("guidance at 8 NFE: perplexity saved at the plain student's entropy", gain, 0.15, is_upper=False)
    entropies = f"entropies {guided.entropy:.3f} and {student.entropy:.3f} at temperature 1"
    lines += [f"\nGuidance: {guided.discriminator_passes:.1f} discriminator passes a sequence; {entropies}."]
    if not meeting:
        lines.append(
            f"\nThe student does not reach the autoregressive twin's perplexity ({autoregressive.gen_ppl:.0f})."
        )
        return lines
    name, twin = Cell("student", nfe=meeting[0]).name, Cell("autoregressive", nfe=128).name
    for size in TIMED_BATCHES:
        ratio = statistics.median(
            theirs / ours for ours, theirs in zip(timing[name][str(size)], timing[twin][str(size)], strict=True)
        )
        lines.append(
            f"\nThe student meets the autoregressive twin's perplexity at {meeting[0]} NFE; at batch {size} it then "
            f"writes {ratio:.1f} times its tokens per second."
        )
    return lines


def timing_table(rows: dict[str, EvaluationRow], timing: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = ["| model | sampler | NFE | " + " | ".join(f"ms / sequence, batch {size}" for size in TIMED_BATCHES) + " |"]
    lines.append("|---|---|--:|" + "--:|" * len(TIMED_BATCHES))
    for name, by_size in timing.items():
        row = rows[name]
        times = " | ".join(f"{1000 * statistics.median(by_size[str(size)]):.3g}" for size in TIMED_BATCHES)
        lines.append(f"| {row.role} | {row.sampler} | {row.nfe} | {times} |")
    return lines


def showcase(rows: dict[str, EvaluationRow], found: dict[str, dict[str, list[str]]]) -> list[str]:
    parts = []
    for name, row in rows.items():
        if row.temperature == 1:
            heading = f"{row.role}, {row.sampler}, {row.nfe} NFE" if row.nfe else "held-out news"
            parts.append(f"**{heading}** (set: perplexity {row.gen_ppl:.0f}, entropy {row.entropy:.2f})\n")
            parts.append(f"> {' '.join(found[name]['texts'][0].split())}\n")
    return parts


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
    args = parser.parse_args(words)
    torch.set_num_threads(1)  # so that two shares fit two cores, and times are those of one
    args.run(args)


if __name__ == "__main__":
    main()
