"""DiDi-Instruct after SDTT, and reward-guided sampling of the students of every method, in the world ``exact``.

    python benchmarks/composition.py STUDY --out DIR [--seeds 5] [--workers 2]

STUDY is the folder of ``didi reproduce table1 --scale exact --methods all --seeds 5``, whose students and settings are
taken. What is done is not done again. Written: ``docs/results/composition.json`` and
tables of ``docs/results/methods.md``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from method_search import command
from pages import DOCS, renew, write_json

from didi.apps.reproduce.cells import Run
from didi.apps.reproduce.command import SAMPLING
from didi.apps.reproduce.cost import sequence_passes
from didi.apps.reproduce.exact_tables import difference, level
from didi.apps.reproduce.methods import MethodPlan, method_plan
from didi.apps.reproduce.study import Study
from didi.evaluation.machine import machine_name
from didi.markdown import markdown_table

GUIDED = ("didi", "sdtt", "mmd", "dcd")
NFES = ("2", "4", "8")
LESSONS = 600
HALF = 1.0e6  # half the sequence passes of the comparison


def rows_of(bundle: str, folder: Path, *samplers: str) -> list[dict[str, Any]]:
    """Exact divergences of a student, measured once."""
    if not (folder / "metrics.json").is_file():
        asked = ["--model", bundle, "--role", "student", "--judge", "exact", "--num-samples", "64", "--nfe", *NFES]
        command("evaluate", *asked, "--sampler", *samplers, "--out", str(folder), "--overwrite")
    rows = json.loads((folder / "metrics.json").read_text())
    return [{name: row[name] for name in ("sampler", "nfe", "kl", "reverse_kl")} for row in rows]


def distilled(run: Path, *words: str) -> str:
    """Bundle of a run, which is made if it is not there."""
    if not (run / "bundle").is_dir():
        command("distill", *words, "--out", str(run), "--overwrite")
    return str(run / "bundle")


def settings_of(study: Study, run: Run) -> str:
    """``config.yaml`` of a run of the study."""
    return str(Path(study.bundle_path(run)).parent / "config.yaml")


def after_sdtt(plan: MethodPlan, study: Study, number: int, out: Path) -> dict[str, Any]:
    """SDTT with half the passes, then DiDi-Instruct with the other half."""
    folder, half = out / f"after-sdtt-{number}", ["--max-passes", str(HALF)]
    sdtt, didi = (settings_of(study, plan.runs(name)[number]) for name in ("sdtt", "didi"))
    first = distilled(folder / "sdtt", "--config", sdtt, "--method", "sdtt", *half)
    second = distilled(folder / "didi", "--config", didi, "--start", first, *half)
    passes = sum(sequence_passes(folder / name / "metrics.jsonl") for name in ("sdtt", "didi"))
    rows = rows_of(second, folder / "evaluation", "ancestral")
    return {"case": "didi after sdtt", "seed": plan.seeds[number], "passes": passes, "rows": rows}


def guided(plan: MethodPlan, study: Study, method: str, number: int, out: Path) -> dict[str, Any]:
    """A student of the study with a discriminator of its own, sampled with and without it."""
    folder, run = out / f"guided-{method}-{number}", plan.runs(method)[number]
    lessons = ["--loop.steps", "0", "--discriminator.warmup-steps", "0", "--discriminator.guidance-nfe", "4"]
    teacher = run.config.teacher  # type: ignore[union-attr]
    judged = distilled(
        folder / "lessons", teacher, "--start", study.bundle_path(run), "--discriminator.guidance-steps", str(LESSONS),
        "--seed", str(run.config.seed), *lessons,
    )  # fmt: skip
    rows = rows_of(judged, folder / "evaluation", "ancestral", "guided")
    passes = sequence_passes(folder / "lessons" / "metrics.jsonl")
    return {"case": method, "seed": run.config.seed, "passes": passes, "rows": rows}


def values(found: Sequence[dict[str, Any]], case: str, sampler: str, nfe: str) -> list[float]:
    """KL of every seed."""
    return [
        row["kl"]
        for one in found
        for row in one["rows"]
        if (one["case"], row["sampler"], str(row["nfe"])) == (case, sampler, nfe)
    ]


def tables(found: Sequence[dict[str, Any]], study: Study, plan: MethodPlan) -> list[str]:
    """Composition and guidance, with 95% intervals over seeds."""
    header = ["KL, nats", *(f"{nfe} moves" for nfe in NFES)]
    alone = {
        name: {str(nfe): [study.row(cell).kl for cell in curve.cells(nfe)] for nfe in map(int, NFES)}
        for name in ("didi", "sdtt")
        for curve in plan.curves
        if curve.name == name
    }
    chain = {nfe: values(found, "didi after sdtt", "ancestral", nfe) for nfe in NFES}
    shown = alone | {"didi after sdtt": chain}
    body = [[name, *(level(cells[nfe]) for nfe in NFES)] for name, cells in shown.items()]
    body.append(["didi after sdtt less didi", *(difference(chain[nfe], alone["didi"][nfe]) for nfe in NFES)])
    lines = [*markdown_table(header, body), ""]
    body = []
    for case in GUIDED:
        plain, ranked = ({nfe: values(found, case, name, nfe) for nfe in NFES} for name in ("ancestral", "guided"))
        body += [
            [case, *(level(plain[nfe]) for nfe in NFES)],
            [f"{case}, guided", *(level(ranked[nfe]) for nfe in NFES)],
            ["difference", *(difference(ranked[nfe], plain[nfe]) for nfe in NFES)],
        ]
    return [*lines, *markdown_table(header, body)]


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(words)
    plan, study = method_plan("exact", GUIDED, args.seeds), Study(args.study, SAMPLING["exact"])
    with ThreadPoolExecutor(args.workers) as pool:
        waiting = [pool.submit(after_sdtt, plan, study, number, args.out) for number in range(args.seeds)]
        waiting += [
            pool.submit(guided, plan, study, method, number, args.out)
            for method in GUIDED
            for number in range(args.seeds)
        ]
        for one in waiting:
            print(one.result(), file=sys.stderr, flush=True)
    found = [one.result() for one in waiting]
    write_json(DOCS / "results" / "composition.json", {"machine": machine_name(), "lessons": LESSONS, "cases": found})
    renew(DOCS / "results" / "methods.md", "composition.py", tables(found, study, plan))


if __name__ == "__main__":
    main()
