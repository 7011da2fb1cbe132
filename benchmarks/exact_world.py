"""The exact world: divergences of its teachers at every number of moves, and the least of a K-move student.

    python benchmarks/exact_world.py [--steps 300] [--only-page]

Twenty minutes on one core, most of it the descents of K = 4 and 8; docs/results/exact-limits.json and the table in
docs/evaluation.md.
"""

import argparse
import json
from dataclasses import asdict

import torch
from pages import DOCS, renew, write_json

import didi
from didi.data.markov import WORLDS
from didi.diffusion.schedule import LogLinear
from didi.evaluation.exact.divergences import exact_divergences
from didi.evaluation.exact.limit import least_divergence
from didi.evaluation.exact.rows import ExactRows
from didi.evaluation.exact.sampler import chain_predictions, sampler_distribution
from didi.evaluation.exact.states import States
from didi.evaluation.machine import machine_name
from didi.markdown import markdown_table
from didi.recipes import PRETRAIN
from didi.sampling.base import path_alphas, time_grid
from didi.sampling.options import SamplingOptions

MOVES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
LIMITS = (1, 2, 4, 8)
RESULT = DOCS / "results" / "exact-limits.json"


def teachers() -> list[dict]:
    """Figures of the perfect teacher and of the bundled one at each number of moves."""
    chain, length = WORLDS["exact"](), PRETRAIN["exact"].data.length
    states, log_q = States(chain.num_symbols, length), chain.log_likelihood(States(chain.num_symbols, length).clean)
    posterior, bundled = chain_predictions(chain, states), ExactRows(didi.load("exact"))
    rows = []
    for number in MOVES:
        alphas = path_alphas(LogLinear(), time_grid(number))
        perfect = exact_divergences(sampler_distribution(states, alphas, posterior), log_q)
        found = bundled(chain, SamplingOptions(role="teacher"), number)
        rows.append({"moves": number, "perfect": asdict(perfect), "bundled": asdict(found)})
        print(number, f"perfect {perfect.kl:.4f}, bundled {found.kl:.4f}", flush=True)
    return rows


def limits(steps: int) -> list[dict]:
    """The least divergence of a student of each number of moves."""
    rows = []
    for number in LIMITS:
        found = least_divergence(WORLDS["exact"](), PRETRAIN["exact"].data.length, number, steps=steps)
        rows.append(asdict(found))
        print(f"limit of {number} moves {found.student.kl:.5f}, teacher {found.teacher.kl:.4f}", flush=True)
    return rows


def table(record: dict) -> list[str]:
    """The lines of the page."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only-page", action="store_true", help="write the table again from the stored figures")
    args = parser.parse_args()
    if not args.only_page:
        chain, length = WORLDS["exact"](), PRETRAIN["exact"].data.length
        log_q = chain.log_likelihood(States(chain.num_symbols, length).clean)
        record = {
            "world": "exact",
            "length": length,
            "entropy": -float((log_q.exp() * log_q).sum()),
            "machine": machine_name(torch.device("cpu")),
            "teachers": teachers(),
            "limits": limits(args.steps),
        }
        write_json(RESULT, record)
    renew(DOCS / "evaluation.md", "exact_world.py", table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
