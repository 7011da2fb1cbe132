"""The table of intervals in docs/evaluation.md: coverage of confidence intervals over evaluations with many seeds.

    python benchmarks/coverage.py [--seeds 200] [--samples 256]

It takes some minutes on one core. The long-run value is computed from the samples of all seeds together.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist

import torch
from pages import DOCS, renew

import didi
from didi.evaluation.machine import machine_name
from didi.evaluation.row import EvaluationRow
from didi.markdown import markdown_table

LEVEL = 0.95
# Probability that an interval contains the figure of a second evaluation, which has an error of its own: lower than
# the level, which is the probability for the true value.
REPEAT = 2 * NormalDist().cdf(NormalDist().inv_cdf((1 + LEVEL) / 2) / math.sqrt(2)) - 1
FIGURES: dict[str, tuple[Callable[[EvaluationRow], float], Callable[[EvaluationRow], tuple[float, float]]]] = {
    "perplexity": (lambda row: row.gen_ppl, lambda row: row.gen_ppl_ci),
    "entropy": (lambda row: row.entropy, lambda row: row.entropy_ci),
}


def rates(values: Sequence[float], intervals: Sequence[tuple[float, float]], truth: float) -> tuple[float, float]:
    """Fraction of the intervals that contain the true value, and fraction that contain the next evaluation's figure."""
    of_truth = [low <= truth <= high for low, high in intervals]
    of_next = [low <= second <= high for (low, high), (_, second) in zip(intervals, pairwise(values), strict=False)]
    return sum(of_truth) / len(of_truth), sum(of_next) / len(of_next)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()
    bundle = didi.load("markov")
    header = ["figure", "NFE", "intervals that hold the long-run value", "stated", "the next seed's figure", "stated"]
    table = []
    for nfe in (4, 16):
        rows = [
            didi.evaluate(bundle, nfe=[nfe], num_samples=args.samples, judge="markov", seed=30_000 + seed)[0]
            for seed in range(args.seeds)
        ]
        for name, (value, interval) in FIGURES.items():
            values = [value(row) for row in rows]
            # All sets have equally many tokens, so the perplexity of all samples is the geometric mean over sets.
            logs = torch.tensor(values, dtype=torch.float64).log()
            truth = float(logs.mean().exp()) if name == "perplexity" else sum(values) / len(values)
            shares = rates(values, [interval(row) for row in rows], truth)
            cells = [
                f"{share:.1%} ± {1.96 * math.sqrt(stated * (1 - stated) / args.seeds):.1%}"
                for share, stated in zip(shares, (LEVEL, REPEAT), strict=True)
            ]
            table.append([name, nfe, cells[0], f"{LEVEL:.0%}", cells[1], f"{REPEAT:.1%}"])
            print(*table[-1], flush=True)
    lines = markdown_table(header, table)
    lines.append(
        f"\nThe teacher `markov` under its exact judge, {args.seeds} seeds from 30,000 of {args.samples} samples; ± is "
        f"the 95% sampling error of a fraction with so many seeds; {machine_name(torch.device('cpu'))}."
    )
    renew(DOCS / "evaluation.md", "coverage.py", lines)


if __name__ == "__main__":
    main()
