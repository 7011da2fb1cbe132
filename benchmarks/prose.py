"""The figures of docs/results/prose.md: perplexity and entropy of ``prose`` by two judges, and joint divergences.

    python benchmarks/prose.py judges --sets DIR [--model prose] [--roles teacher data] [--judge smollm2-135m]
    python benchmarks/prose.py joint --sets DIR --reference RUN/bundle [--num-samples 512]
    python benchmarks/prose.py page

Sample sets and their scores are kept in ``--sets``, so that the script can be interrupted, resumed and shared by
processes. ``judges`` and ``joint`` write their part of ``docs/results/prose.json`` once all sets are there; ``page``
writes the tables. The reference is trained by ``didi pretrain prose-ar``.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import equal_entropy
import torch
from equal_entropy import SEED, drawn, of_network, scored
from pages import DOCS, renew, write_json
from torch import Tensor

import didi
from didi.data.source import open_source
from didi.diffusion.noise import named_generator
from didi.evaluation.anchors import shuffled_words, starts_of_words
from didi.evaluation.equal_entropy import PerSequence
from didi.evaluation.frontier import bootstrap_interval, mean_interval
from didi.evaluation.joint import TEXT_SETTINGS, joint_divergence
from didi.evaluation.machine import machine_name
from didi.markdown import markdown_table
from didi.models.autoregressive import AutoregressiveLM

LENGTH = 256
JUDGES = {"smollm2-135m": "SmolLM2", "gemma3-270m": "Gemma"}
"""Names of the judges on the page."""
TEACHER_NFES, TEMPERATURES = (8, 64), (0.8, 0.9, 1.0)
"""Numbers of moves and temperatures of the teacher for the comparison at equal entropy."""
CELLS = {
    "data": [(0, 1.0)],
    "shuffled words": [(0, 1.0)],
    "teacher": [
        (4, 1.0),
        (16, 1.0),
        *((nfe, temperature) for nfe in TEACHER_NFES for temperature in TEMPERATURES),
        (64, 0.92),  # entropy within 2% of held-out text
    ],
    "student": [(nfe, 1.0) for nfe in (4, 8, 16, 64)],
}
JOINT_CELLS = [("data", 0), ("teacher", 8), ("student", 8), ("teacher", 16), ("student", 16)]
JOINT_SETTINGS = replace(TEXT_SETTINGS, learning_rate=5e-4)
"""At the 2e-3 of the smaller network of ``tiny-news`` some fits end above the loss of their start."""


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
    judged = []
    for judge in args.judge:
        for role in args.roles:
            for nfe, temperature in CELLS[role]:
                values = cell(args, judge, role, nfe, temperature)
                row = {"judge": judge, "role": role, "nfe": nfe, "temperature": temperature}
                judged.append(row | perplexity_and_entropy(values))
                print(judged[-1], flush=True)
    return judged


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


def joint_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Joint divergence of each of ``JOINT_CELLS`` from the reference."""
    reference = didi.load(args.reference).autoregressive
    if not isinstance(reference, AutoregressiveLM):
        raise SystemExit(f"the reference has an autoregressive network; {args.reference} has none: see didi pretrain")
    records = []
    for role, nfe in JOINT_CELLS:
        file = args.sets / f"joint-{role}-{nfe}-{args.num_samples}.json"
        if not file.is_file():
            tokens = drawn(args, role, nfe, 1.0) if nfe else real_tokens(args, role)
            estimate = joint_divergence(tokens, reference, JOINT_SETTINGS)
            write_json(file, {"role": role, "nfe": nfe, "folds": estimate.folds} | estimate.record())
        records.append(json.loads(file.read_text("utf-8")))
        print(records[-1], flush=True)
    return records


def page(record: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    at_equal_entropy = zip(*(record["equal_entropy"][judge] for judge in JUDGES), strict=True)
    ratios = [
        [f"student with {rows[0]['nfe']}, {rows[0]['against'].replace('at', 'with')}"]
        + [estimate(row["ratio"], row["interval"], ".2f") for row in rows]
        for rows in at_equal_entropy
    ]
    lines = markdown_table(
        ["perplexity of the student over that of the teacher at the same entropy", *JUDGES.values()], ratios
    )
    if joint := record.get("joint"):
        cells = [[*set_of(row), estimate(row["kl"], row["ci"], ".1f")] for row in joint["rows"]]
        lines += ["", *markdown_table(["set", "NFE", "joint KL from the autoregressive network, nats"], cells)]
    order = list(CELLS)
    by_set = sorted(record["rows"], key=lambda row: (order.index(row["role"]), -row["temperature"], row["nfe"]))
    sets = zip(*([row for row in by_set if row["judge"] == judge] for judge in JUDGES), strict=True)
    cells = [
        [*set_of(rows[0]), f"{rows[0]['temperature']:g}" if rows[0]["nfe"] else "–"]
        + [estimate(row["perplexity"], row["perplexity_ci"], ",.0f") for row in rows]
        + [estimate(rows[0]["entropy"], rows[0]["entropy_ci"], ".2f")]
        for rows in sets
    ]
    header = ["set", "NFE", "temperature", *(f"perplexity, {name}" for name in JUDGES.values()), "entropy"]
    return [*lines, "", *markdown_table(header, cells)]


def set_of(row: dict[str, Any]) -> list[str]:
    """First cells of a row: the set and its number of moves."""
    names = {"data": "held-out text", "shuffled words": "the same, words shuffled"}
    return [names.get(row["role"], row["role"]), str(row["nfe"] or "–")]


def estimate(value: float, interval: Sequence[float], form: str) -> str:
    """A value with its interval."""
    low, high = interval
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("judges", "joint", "page"))
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--model", default="prose")
    parser.add_argument("--judge", nargs="+", choices=list(JUDGES), default=list(JUDGES))
    parser.add_argument("--roles", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--reference", help="bundle of the autoregressive network")
    parser.add_argument("--num-samples", type=int, help="by default 128 (judges) and 512 (joint)")
    args = parser.parse_args(words)
    results = DOCS / "results" / "prose.json"
    record = json.loads(results.read_text("utf-8")) if results.is_file() else {}
    if args.part == "page":
        renew(DOCS / "results" / "prose.md", "prose.py", page(record))
        return
    if args.sets is None or (args.part == "joint" and args.reference is None):
        parser.error("judges needs --sets, joint needs --sets and --reference")
    args.network, args.temperatures = "bfloat16", TEMPERATURES
    args.num_samples = args.num_samples or {"judges": 128, "joint": 512}[args.part]
    equal_entropy.check_sets(args)
    settings = {"model": args.model, "seed": SEED, "network": args.network}
    measured_on = {"num_samples": args.num_samples, "machine": machine_name()}
    if args.part == "joint":
        write_json(results, record | settings | {"joint": {**measured_on, "rows": joint_rows(args)}})
        return
    measured = rows(args)
    if set(args.roles) == set(CELLS) and set(args.judge) == set(JUDGES):
        at_equal_entropy = {judge: equal_entropy_rows(args, judge) for judge in JUDGES}
        write_json(results, record | settings | measured_on | {"rows": measured, "equal_entropy": at_equal_entropy})


if __name__ == "__main__":
    main()
