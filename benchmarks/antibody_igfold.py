"""IgFold on samples of an antibody study: docs/results/antibody-igfold.json, and the table of docs/results/antibody.md.

    python benchmarks/antibody_igfold.py score STUDY [--num-samples 32] [--num-controls 16]
    python benchmarks/antibody_igfold.py table

``score`` needs the extra ``igfold``. STUDY is the folder of ``didi reproduce figure5 --scale proteins`` for antibodies.
The first samples of 122 residues of the teacher with 64 moves and of the students with 8 are scored, and controls made
of the held-out chains nearest in length; it continues after a stop. ``table`` prints means with 95% bootstrap intervals
over sequences.
"""

import argparse
import json
import re
from pathlib import Path

import torch

from didi.apps.reproduce.protein_measure import nearest_in_length
from didi.data.fasta import read_fasta
from didi.evaluation.frontier import mean_interval
from didi.evaluation.protein.controls import control_sets
from didi.evaluation.protein.judges import load_protein_judge
from didi.evaluation.protein.measures import pair_distances
from didi.files import write_atomically

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "antibody-igfold.json"
LENGTH = 122
CDR3 = re.compile(r"[YF][YFH]C(\w{5,30}?)WG\wG")  # between the conserved cysteine and tryptophan, both exclusive
VH3 = re.compile(r"\w{7}[GE]GG\w")  # framework 1 of family VH3: EVQLVESGGGL


def sets_of(study: Path, num_samples: int, num_controls: int) -> dict[str, list[str]]:
    """Sequences to score, by the name of their set."""
    natural = nearest_in_length(
        [chain.residues for chain in read_fasta(study / "held-out.fasta")], LENGTH, num_controls
    )
    sets = {name: list(chains) for name, chains in control_sets(natural, seed=LENGTH).items()}
    for file in sorted((study / "cells").glob("*.json")):
        record = json.loads(file.read_text("utf-8"))
        cell = record.get("cell") or {}
        if cell.get("length") == LENGTH and (cell.get("role"), cell.get("nfe")) in {("teacher", 64), ("student", 8)}:
            name = f"{Path(cell['bundle']).parent.name}, {cell['nfe']} moves"
            sets[name] = record["sequences"][:num_samples]
    return sets


def score(study: Path, num_samples: int, num_controls: int) -> None:
    """Predicted error of each residue in Å, of all sequences that the results lack."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    judge = load_protein_judge("igfold")
    for name, sequences in sets_of(study, num_samples, num_controls).items():
        known = {row["sequence"]: row for row in results.get(name, [])}
        results[name] = []
        for sequence in sequences:
            if sequence not in known:
                (scored,) = judge.residues([sequence], {})
                errors = [round(error, 3) for error in scored.scores.tolist()]
                known[sequence] = {"sequence": sequence, "errors": errors}
            results[name].append(known[sequence])
        write_atomically(RESULTS, json.dumps(results) + "\n")


def parts(row: dict) -> tuple[float, float] | None:
    """Mean error of CDR3 and of all other residues; None if there is no CDR3."""
    loop = CDR3.search(row["sequence"])
    if loop is None:
        return None
    inside = row["errors"][loop.start(1) : loop.end(1)]
    outside = row["errors"][: loop.start(1)] + row["errors"][loop.end(1) :]
    return sum(inside) / len(inside), sum(outside) / len(outside)


def shown(values: list[float]) -> str:
    """Mean, interval and number of values."""
    if len(values) < 2:
        return f"– ({len(values)})"
    low, high = mean_interval(torch.tensor(values).double())
    return f"{sum(values) / len(values):.3f} [{low:.3f}, {high:.3f}] ({len(values)})"


def table() -> None:
    """Print the figures of every set: error, of CDR3, of the rest, of family VH3 and of other chains, pair distance."""
    for name, rows in json.loads(RESULTS.read_text("utf-8")).items():
        errors = [sum(row["errors"]) / len(row["errors"]) for row in rows]
        is_vh3 = [bool(VH3.match(row["sequence"])) for row in rows]
        split = [part for part in map(parts, rows) if part is not None]
        print(f"{name}: error {shown(errors)}")
        print(f"  CDR3 {shown([cdr3 for cdr3, _ in split])}; rest {shown([rest for _, rest in split])}")
        print(f"  VH3 {shown([e for e, ok in zip(errors, is_vh3, strict=True) if ok])}; "
              f"others {shown([e for e, ok in zip(errors, is_vh3, strict=True) if not ok])}")  # fmt: skip
        print(f"  pair distance {float(pair_distances([row['sequence'] for row in rows]).mean()):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    scoring = commands.add_parser("score")
    scoring.add_argument("study", type=Path)
    scoring.add_argument("--num-samples", type=int, default=32)
    scoring.add_argument("--num-controls", type=int, default=16)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "score":
        score(arguments.study, arguments.num_samples, arguments.num_controls)
    else:
        table()


if __name__ == "__main__":
    main()
