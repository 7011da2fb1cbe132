"""The figures of docs/results/prose.md: perplexity and entropy of ``prose``, by two judges, and at equal entropy.

    python benchmarks/prose.py --sets DIR [--model prose] [--roles teacher data] [--judge smollm2-135m]

Sample sets and their scores are kept in ``--sets``, so that the script can be interrupted, resumed and shared by
processes. It prints a row of the page's table for each set, and writes ``docs/results/prose.json`` once all are there.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equal_entropy
import torch
from equal_entropy import SEED, of_network, scored
from pages import DOCS, write_json
from torch import Tensor

import didi
from didi.data.source import open_source
from didi.diffusion.noise import named_generator
from didi.evaluation.anchors import shuffled_words, starts_of_words
from didi.evaluation.equal_entropy import PerSequence
from didi.evaluation.frontier import bootstrap_interval, mean_interval
from didi.evaluation.machine import machine_name

LENGTH = 256
JUDGES = ("smollm2-135m", "gemma3-270m")
TEACHER_NFES, TEMPERATURES = (8, 64), (0.8, 0.9, 1.0)
"""Numbers of moves and temperatures of the teacher for the comparison at equal entropy."""
CELLS = {
    "data": [(0, 1.0)],
    "shuffled words": [(0, 1.0)],
    "teacher": [(4, 1.0), (16, 1.0), *((nfe, temperature) for nfe in TEACHER_NFES for temperature in TEMPERATURES)],
    "student": [(nfe, 1.0) for nfe in (4, 8, 16, 64)],
}


def real_tokens(args: argparse.Namespace, role: str) -> Tensor:
    """Held-out rows of the test split, or the same rows with their words shuffled."""
    tokenizer = didi.load(args.model).tokenizer
    test = open_source("prose", length=LENGTH, tokenizer=tokenizer).test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))
    rows = test[order[: args.num_samples]]
    if role == "data":
        return rows
    return shuffled_words(rows, starts_of_words(tokenizer), named_generator(SEED, "shuffled words"))


def cell(args: argparse.Namespace, judge: str, role: str, nfe: int, temperature: float) -> PerSequence:
    """Scores of one set."""
    if nfe:
        return of_network(args, judge, role, nfe, temperature)
    return scored(args, judge, role.replace(" ", "-"), lambda: real_tokens(args, role))


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each judge and set."""
    found = []
    for judge in args.judge:
        for role in args.roles:
            for nfe, temperature in CELLS[role]:
                values = cell(args, judge, role, nfe, temperature)
                row = {"judge": judge, "role": role, "nfe": nfe, "temperature": temperature}
                found.append(row | perplexity_and_entropy(values))
                print(row_line(found[-1]), flush=True)
    return found


def equal_entropy_rows(args: argparse.Namespace, judge: str) -> list[dict[str, Any]]:
    """The student against the teacher with each of ``TEACHER_NFES`` moves."""
    return [row for teacher_nfe in TEACHER_NFES for row in equal_entropy.rows(args, judge, teacher_nfe)]


def perplexity_and_entropy(values: PerSequence) -> dict[str, Any]:
    """Corpus perplexity and mean entropy with their 95% intervals."""
    nll, num_tokens, entropy = values.sum(0).tolist()
    return {
        "perplexity": math.exp(nll / num_tokens),
        "perplexity_ci": bootstrap_interval(values[:, :2], lambda totals: (totals[:, 0] / totals[:, 1]).exp()),
        "entropy": entropy / len(values),
        "entropy_ci": mean_interval(values[:, 2]),
    }


def row_line(row: dict[str, Any]) -> str:
    """A row of the page's table."""
    perplexity, (low, high) = row["perplexity"], row["perplexity_ci"]
    entropy, (least, most) = row["entropy"], row["entropy_ci"]
    return (
        f"| {row['role']} | {row['nfe'] or '–'} | {row['temperature']:g} | {perplexity:,.0f} [{low:,.0f}, {high:,.0f}] "
        f"| {entropy:.2f} [{least:.2f}, {most:.2f}] | {row['judge']} |"
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--model", default="prose")
    parser.add_argument("--judge", nargs="+", choices=JUDGES, default=list(JUDGES))
    parser.add_argument("--roles", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--num-samples", type=int, default=128)
    args = parser.parse_args(words)
    args.network, args.temperatures = "bfloat16", TEMPERATURES
    equal_entropy.check_sets(args)
    measured = rows(args)
    if set(args.roles) == set(CELLS) and set(args.judge) == set(JUDGES):
        at_equal_entropy = {judge: equal_entropy_rows(args, judge) for judge in JUDGES}
        about = {
            "model": args.model,
            "seed": SEED,
            "num_samples": args.num_samples,
            "network": args.network,
            "machine": machine_name(),
        }
        write_json(DOCS / "results" / "prose.json", about | {"rows": measured, "equal_entropy": at_equal_entropy})


if __name__ == "__main__":
    main()
