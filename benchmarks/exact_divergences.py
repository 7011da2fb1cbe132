"""The data ``exact``: divergences of teachers and students, and the least divergence of a student of K moves.

    python benchmarks/exact_divergences.py limits [--steps 300]
    python benchmarks/exact_divergences.py students BUNDLE [BUNDLE ...]
    python benchmarks/exact_divergences.py page

``limits`` takes twenty minutes on one core, mostly for the gradient descents of K = 4 and 8 moves. Figures are
written to docs/results/exact-limits.json, tables to docs/results/exact.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from pages import DOCS, renew, write_json

import didi
from didi.data.markov import CHAINS
from didi.diffusion.schedule import LogLinear
from didi.evaluation.exact.divergences import exact_divergences
from didi.evaluation.exact.limit import minimal_divergence
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.exact.sampler import chain_predictions, sampler_distribution
from didi.evaluation.exact.states import States
from didi.evaluation.machine import machine_name
from didi.evaluation.over_seeds import estimate
from didi.markdown import markdown_table
from didi.recipes import PRETRAIN
from didi.sampling.base import path_alphas, time_grid
from didi.sampling.options import SamplingOptions

MOVES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
LIMITS = (1, 2, 4, 8)
STUDENT_MOVES = (1, 2, 4, 8, 16)
RESULT = DOCS / "results" / "exact-limits.json"


def teachers() -> list[dict]:
    """Divergences of the perfect and of the bundled teacher at each number of moves."""
    chain, length = CHAINS["exact"](), PRETRAIN["exact"].data.length
    states, log_q = States(chain.num_symbols, length), chain.log_likelihood(States(chain.num_symbols, length).clean)
    posterior, bundled = chain_predictions(chain, states), ExactRows(didi.load("exact"))
    rows = []
    for number in MOVES:
        alphas = path_alphas(LogLinear(), time_grid(number))
        perfect = exact_divergences(sampler_distribution(states, alphas, posterior), log_q)
        trained = bundled(chain, SamplingOptions(role="teacher"), number)
        rows.append({"moves": number, "perfect": asdict(perfect), "bundled": asdict(trained)})
        print(number, f"perfect {perfect.kl:.4f}, bundled {trained.kl:.4f}", flush=True)
    return rows


def limits(steps: int) -> list[dict]:
    """The least divergence of a student of each number of moves."""
    rows = []
    for number in LIMITS:
        limit = minimal_divergence(CHAINS["exact"](), PRETRAIN["exact"].data.length, number, steps=steps)
        rows.append(asdict(limit))
        print(f"limit of {number} moves {limit.student.kl:.5f}, teacher {limit.teacher.kl:.4f}", flush=True)
    return rows


def students(paths: Sequence[str]) -> list[dict]:
    """Divergences of distilled students at several numbers of moves, with their training settings."""
    chain, rows = CHAINS["exact"](), []
    for path in paths:
        bundle = didi.load(path)
        settings, judged = bundle.provenance["settings"], ExactRows(bundle)
        if settings["objective"]["moves"] not in STUDENT_MOVES:
            raise SystemExit(f"students are those of {STUDENT_MOVES} moves; {path} was trained for another number")
        figures = {k: asdict(judged(chain, SamplingOptions(role="student"), k)) for k in STUDENT_MOVES}
        row = {
            "moves": settings["objective"]["moves"],
            "seed": settings["seed"],
            "paths": settings["loop"]["batch_size"],
            "steps": settings["loop"]["steps"],
            "machine": bundle.provenance["machine"],
            "figures": figures,
        }
        rows.append(row)
        print({name: value for name, value in row.items() if name != "figures"}, figures[row["moves"]], flush=True)
    return sorted(rows, key=lambda row: (row["moves"], row["seed"]))


def limits_table(record: dict) -> list[str]:
    """Lines of the table of teachers and limits."""
    least = {row["num_moves"]: row["student"]["kl"] for row in record["limits"]}
    body = []
    for row in record["teachers"]:
        number = row["moves"]
        limit = f"{least[number]:.2g}" if number in least else "–"
        body.append([number, f"{row['perfect']['kl']:.4f}", f"{row['bundled']['kl']:.4f}", limit])
    header = ["moves", "perfect teacher", "bundled teacher", "limit of a student"]
    return [
        *markdown_table(header, body, align="rrrr"),
        f"\nKL(p, q) in nats a sequence; q has a joint entropy of {record['entropy']:.3f}. The limit is found by "
        f"{record['limits'][0]['steps']} steps of gradient descent. {record['machine']}.",
    ]


def students_table(record: dict) -> list[str]:
    """Lines of the table of students: KL, entropy at the intended number of moves, mean over seeds with interval."""
    body, rows = [], record["students"]
    for moves in dict.fromkeys(row["moves"] for row in rows):
        group = [row for row in rows if row["moves"] == moves]
        for row in group:
            kls = [f"{row['figures'][str(k)]['kl']:.4f}" for k in STUDENT_MOVES]
            entropy = f"{row['figures'][str(moves)]['joint_entropy']:.3f}"
            body.append([moves, row["seed"], f"{row['steps']} of {row['paths']:,}", *kls, entropy])
        kls_at_intended = [row["figures"][str(moves)]["kl"] for row in group]
        if len(kls_at_intended) > 1:
            over_seeds = estimate(kls_at_intended)
            mean = f"{over_seeds.mean:.4f} [{over_seeds.low:.4f}, {over_seeds.high:.4f}]"
            means = [mean if k == moves else "" for k in STUDENT_MOVES]
            body.append([moves, "mean", "", *means, ""])
    header = ["made for", "seed", "steps", *(f"KL at {k}" for k in STUDENT_MOVES), "entropy at its own"]
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows))
    note = "KL(p, q) and joint entropy in nats a sequence; brackets hold the 95% interval over seeds. Trained on"
    return [*markdown_table(header, body, num_left=0), f"\n{note}: {machines}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("limits", "students", "page"))
    parser.add_argument("bundles", nargs="*", help="bundles of didi distill exact")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    record = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    if args.part == "limits":
        chain, length = CHAINS["exact"](), PRETRAIN["exact"].data.length
        log_q = chain.log_likelihood(States(chain.num_symbols, length).clean)
        record |= {
            "data": "exact",
            "length": length,
            "entropy": -float((log_q.exp() * log_q).sum()),
            "machine": machine_name(torch.device("cpu")),
            "teachers": teachers(),
            "limits": limits(args.steps),
        }
    elif args.part == "students":
        record["students"] = students(args.bundles)
    write_json(RESULT, record)
    record = json.loads(RESULT.read_text("utf-8"))
    renew(DOCS / "results" / "exact.md", "exact_divergences.py", limits_table(record))
    renew(DOCS / "results" / "exact.md", "exact_divergences.py students", students_table(record))


if __name__ == "__main__":
    main()
