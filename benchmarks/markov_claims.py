"""Measure distilled ``markov`` students and their teacher with the exact judge, and check our claims about them.

    python benchmarks/markov_claims.py RUN [RUN ...] --out docs/results/markov

Each RUN is a folder of ``didi distill markov``. The script writes metrics.json, prints the tables of the page, and
exits with status 1 if a claim fails. Samples are drawn with a seed with which no settings were chosen.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from pages import write_json

import didi
from didi.data.source import open_source
from didi.evaluation.row import EvaluationRow
from didi.markdown import markdown_table

SEED = 20_262
NUM_SAMPLES = 4096
TEACHER_NFE, STUDENT_NFE, GUIDED_NFE = (4, 8, 16, 32, 64), (4, 8, 16), (4, 8)
# (sampler, NFE of the student, NFE of the teacher, factor): student's perplexity <= factor * teacher's
CLAIMS = (("ancestral", 4, 4, 0.75), ("ancestral", 8, 16, 1.0), ("ancestral", 16, 64, 1.0), ("guided", 8, 32, 1.0))
FIGURES = ["model", "sampler", "NFE", "disc. passes", "exact perplexity [95% CI]", "unigram entropy", "bigram entropy"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    options = didi.SamplingOptions(batch_size=512)
    data = open_source("markov", length=32).test[:NUM_SAMPLES]

    def measure(bundle: didi.Bundle, **settings: object) -> list[EvaluationRow]:
        return didi.evaluate(bundle, num_samples=NUM_SAMPLES, seed=SEED, options=options, **settings)

    bundles = [didi.load(run / "bundle") for run in args.runs]
    rows = measure(bundles[0], role="teacher", nfe=TEACHER_NFE, data=data)
    real, teacher = rows[0], {row.nfe: row for row in rows[1:]}
    figures = [line("data", real), *(line("teacher", row) for row in teacher.values())]
    verdicts: list[list[object]] = []
    records = [{"run": "teacher", **asdict(row)} for row in rows]
    all_hold = True
    for run, bundle in zip(args.runs, bundles, strict=True):
        seed = bundle.provenance["seed"]
        student = measure(bundle, role="student", nfe=STUDENT_NFE)
        student += measure(bundle, role="student", sampler="guided", nfe=GUIDED_NFE)
        by_sampler = {(row.sampler, row.nfe): row for row in student}
        records += [{"run": run.name, "training_seed": seed, **asdict(row)} for row in student]
        figures += [line(f"student, seed {seed}", row) for row in student]
        for sampler, nfe, teacher_nfe, factor in CLAIMS:
            row = by_sampler[sampler, nfe]
            unigram = teacher[teacher_nfe].corpus_entropy
            bound = factor * teacher[teacher_nfe].gen_ppl
            times = "" if factor == 1 else f"{factor:g} x "
            checks = [
                (f"perplexity, {sampler} {nfe} NFE <= {times}teacher {teacher_nfe} NFE", row.gen_ppl, bound, "<="),
                (f"unigram entropy, {sampler} {nfe} NFE >= 0.97 teacher", row.corpus_entropy, 0.97 * unigram, ">="),
                (f"unigram entropy, {sampler} {nfe} NFE <= 1.03 teacher", row.corpus_entropy, 1.03 * unigram, "<="),
                (f"bigram entropy, {sampler} {nfe} NFE >= data", row.bigram_entropy, real.bigram_entropy, ">="),
            ]
            for text, figure, limit, sign in checks:
                holds = figure <= limit if sign == "<=" else figure >= limit
                all_hold &= holds
                verdict = "yes" if holds else "**no**"
                verdicts.append([seed, text, f"{figure:.3f}", f"{limit:.3f}", verdict])
    write_json(args.out / "metrics.json", records)
    lines = markdown_table(FIGURES, figures, num_left=2)
    claims = markdown_table(["training seed", "claim", "value", "bound", "holds"], verdicts, align="rlrrl")
    print("\n".join([*lines, "", *claims, "", f"{NUM_SAMPLES} samples a row, sampling seed {SEED}, {real.machine}."]))
    return 0 if all_hold else 1


def line(name: str, row: EvaluationRow) -> list[object]:
    """Cells of a table row with the columns ``FIGURES``."""
    low, high = row.gen_ppl_ci
    figures = [f"{row.discriminator_passes:.1f}", f"{row.gen_ppl:.3f} [{low:.3f}, {high:.3f}]"]
    figures += [f"{row.corpus_entropy:.3f}", f"{row.bigram_entropy:.3f}"]
    return [name, row.sampler or "-", row.nfe or "-", *figures]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
