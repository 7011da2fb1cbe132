"""DiDi-Instruct after another method, and reward-guided sampling of the students of every method.

    python benchmarks/composition.py SCALE STUDY --out DIR [--seeds 5] [--workers 2]

STUDY is the folder of ``didi reproduce table1 --scale SCALE --methods all``; its students and settings are used. When
two methods follow each other, each has half the sequence passes of the comparison. Finished runs and evaluations are
reused. The script writes ``docs/results/composition-SCALE.json`` and tables of ``docs/results/methods.md``.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method_search import command
from pages import DOCS, renew, write_json

from didi.apps.reproduce.cells import Run
from didi.apps.reproduce.command import SAMPLING
from didi.apps.reproduce.cost import sequence_passes
from didi.apps.reproduce.exact_tables import difference, level
from didi.apps.reproduce.method_measures import JOINT, KL
from didi.apps.reproduce.methods import MethodPlan, method_plan
from didi.apps.reproduce.study import Study
from didi.evaluation.machine import machine_name
from didi.markdown import markdown_table
from didi.methods import method_of
from didi.sampling.options import DEFAULT_SAMPLER

GUIDANCE_STEPS = 600
"""Training steps of a discriminator for an unchanged student."""


@dataclass(frozen=True)
class Chain:
    """Two methods, one after the other.

    Attributes:
        first: name of the first method in ``didi.recipes.COMPARED``.
        second: name of the second method, which starts from the student of the first.
        nfes: numbers of moves.
        flags: further flags of the first method, without which the second could not start from its student.
    """

    first: str
    second: str
    nfes: tuple[int, ...]
    flags: str = ""

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.second} after {self.first}"


@dataclass(frozen=True)
class Composition:
    """The compositions of one scale.

    Attributes:
        half: half the sequence passes of the comparison.
        evaluation_flags: flags of ``didi evaluate``.
        chains: pairs of methods, one after the other.
        guided: methods whose students are sampled with guidance, at 2, 4 and 8 moves.
    """

    half: float
    evaluation_flags: str
    chains: tuple[Chain, ...]
    guided: tuple[str, ...] = ()


COMPOSITIONS = {
    "exact": Composition(
        1.0e6, "--judge exact --num-samples 64", (Chain("sdtt", "didi", (2, 4, 8)),), ("didi", "sdtt", "mmd", "dcd")
    ),
    "markov": Composition(
        3.0e5,
        f"--judge markov --num-samples 512 --joint --seed {SAMPLING['markov'].seed}",
        (Chain("dimo", "didi-1", (1,), flags="--initial-state.noise-std 0"),),
    ),
}
GUIDED_NFES = (2, 4, 8)


def rows_of(
    bundle: str, folder: Path, evaluation_flags: str, nfes: Sequence[int], *samplers: str
) -> list[dict[str, Any]]:
    """Divergences of a student; a complete measurement in ``folder`` is reused."""
    metrics = folder / "metrics.json"
    if not metrics.is_file() or len(json.loads(metrics.read_text("utf-8"))) < len(nfes) * len(samplers):
        moves = [str(nfe) for nfe in nfes]
        asked = ["--model", bundle, "--role", "student", *evaluation_flags.split(), "--nfe", *moves]
        command("evaluate", *asked, "--sampler", *samplers, "--out", str(folder), "--overwrite")
    rows = json.loads(metrics.read_text("utf-8"))
    return [{name: row.get(name) for name in ("sampler", "nfe", "kl", "joint_kl", "pair_kl")} for row in rows]


def distilled(run: Path, *words: str) -> str:
    """Bundle of a run, which is trained if the bundle does not exist."""
    if not (run / "bundle").is_dir():
        command("distill", *words, "--out", str(run), "--overwrite")
    return str(run / "bundle")


def settings_of(study: Study, run: Run) -> str:
    """``config.yaml`` of a run of the study."""
    return str(Path(study.bundle_path(run)).parent / "config.yaml")


def chained(scale: str, chain: Chain, plan: MethodPlan, study: Study, number: int, out: Path) -> dict[str, Any]:
    """Train the first method with half the passes, then the second with the other half, and measure the student."""
    composition = COMPOSITIONS[scale]
    folder, half = out / f"{chain.second}-after-{chain.first}-{number}", ["--max-passes", str(composition.half)]
    runs = [plan.runs(name)[number] for name in (chain.first, chain.second)]
    bundle, passes = "", 0.0
    for name, run in zip((chain.first, chain.second), runs, strict=True):
        start = ["--start", bundle] if bundle else chain.flags.split()
        method = ["--method", method_of(run.config).name]
        bundle = distilled(folder / name, "--config", settings_of(study, run), *method, *start, *half)
        passes += sequence_passes(folder / name / "metrics.jsonl")
    rows = rows_of(bundle, folder / "evaluation", composition.evaluation_flags, chain.nfes, DEFAULT_SAMPLER)
    return {"case": chain.name, "seed": plan.seeds[number], "passes": passes, "rows": rows}


def guided(scale: str, method: str, plan: MethodPlan, study: Study, number: int, out: Path) -> dict[str, Any]:
    """Train a discriminator for a student of the study, and measure the student with and without guidance by it."""
    folder, run = out / f"guided-{method}-{number}", plan.runs(method)[number]
    only_discriminator = ["--loop.steps", "0", "--discriminator.warmup-steps", "0", "--discriminator.guidance-nfe", "4"]
    teacher = run.config.teacher  # type: ignore[union-attr]
    bundle = distilled(
        folder / "guidance", teacher, "--start", study.bundle_path(run), "--discriminator.guidance-steps",
        str(GUIDANCE_STEPS), "--seed", str(run.config.seed), *only_discriminator,
    )  # fmt: skip
    rows = rows_of(
        bundle, folder / "evaluation", COMPOSITIONS[scale].evaluation_flags, GUIDED_NFES, "ancestral", "guided"
    )
    passes = sequence_passes(folder / "guidance" / "metrics.jsonl")
    return {"case": method, "seed": run.config.seed, "passes": passes, "rows": rows}


def chain_table(chain: Chain, records: Sequence[dict[str, Any]], plan: MethodPlan, study: Study) -> list[str]:
    """A table of the chain and of both methods alone, on the same training seeds, with 95% intervals over them."""
    seeds = [record["seed"] for record in records]
    measure = "joint_kl" if plan.settings.joint else "kl"
    alone = {
        curve.name: [
            [getattr(study.row(curve.cells(nfe)[plan.seeds.index(seed)]), measure) for seed in seeds]
            for nfe in chain.nfes
        ]
        for curve in plan.curves
        if curve.name in (chain.first, chain.second)
    }
    together = [
        [row[measure] for record in records for row in record["rows"] if row["nfe"] == nfe] for nfe in chain.nfes
    ]
    shown = alone | {chain.name: together}
    header = [
        JOINT.name if plan.settings.joint else KL.name,
        *(f"{nfe} move{'s' if nfe > 1 else ''}" for nfe in chain.nfes),
    ]
    body = [[name, *map(level, cells)] for name, cells in shown.items()]
    body += [
        [f"{chain.name} minus {name}", *(difference(*pair) for pair in zip(together, cells, strict=True))]
        for name, cells in alone.items()
    ]
    return [*markdown_table(header, body), ""]


def guided_table(records: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[str]:
    """A table of students with and without guidance, with 95% intervals over seeds."""

    def values(case: str, sampler: str, nfe: int) -> list[float]:
        rows = [row for record in records if record["case"] == case for row in record["rows"]]
        return [row["kl"] for row in rows if (row["sampler"], row["nfe"]) == (sampler, nfe)]

    body = []
    for case in methods:
        plain, ranked = ([values(case, name, nfe) for nfe in GUIDED_NFES] for name in ("ancestral", "guided"))
        body += [
            [case, *map(level, plain)],
            [f"{case}, guided", *map(level, ranked)],
            ["difference", *(difference(*pair) for pair in zip(ranked, plain, strict=True))],
        ]
    return markdown_table([KL.name, *(f"{nfe} moves" for nfe in GUIDED_NFES)], body)


def main(words: Sequence[str] | None = None) -> None:
    """Run all missing parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=COMPOSITIONS)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--guided", nargs="*", help="methods whose students are sampled with guidance")
    args = parser.parse_args(words)
    composition, numbers = COMPOSITIONS[args.scale], range(args.seeds)
    methods = composition.guided if args.guided is None else args.guided
    names = {name for chain in composition.chains for name in (chain.first, chain.second)} | {*methods}
    plan, study = method_plan(args.scale, sorted(names), args.seeds), Study(args.study, SAMPLING[args.scale])
    with ThreadPoolExecutor(args.workers) as pool:
        chains = {
            chain: [pool.submit(chained, args.scale, chain, plan, study, number, args.out) for number in numbers]
            for chain in composition.chains
        }
        others = [
            pool.submit(guided, args.scale, method, plan, study, number, args.out)
            for method in methods
            for number in numbers
        ]
        for future in [*itertools.chain.from_iterable(chains.values()), *others]:
            print(future.result(), file=sys.stderr, flush=True)
    cases = {chain: [future.result() for future in futures] for chain, futures in chains.items()}
    ranked = [future.result() for future in others]
    lines = [line for chain, records in cases.items() for line in chain_table(chain, records, plan, study)]
    lines += guided_table(ranked, methods) if methods else []
    record = {
        "machine": machine_name(),
        "guidance_steps": GUIDANCE_STEPS,
        "cases": [*itertools.chain.from_iterable(cases.values()), *ranked],
    }
    write_json(DOCS / "results" / f"composition-{args.scale}.json", record)
    renew(DOCS / "results" / "methods.md", f"composition.py {args.scale}", lines)


if __name__ == "__main__":
    main()
