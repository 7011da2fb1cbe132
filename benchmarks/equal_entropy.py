"""Student and teacher of a bundle at equal entropy.

    python benchmarks/equal_entropy.py --sets DIR
    python benchmarks/equal_entropy.py --sets DIR --model MODEL --teacher-nfe 64 --temperatures 0.8 0.9 1

Scored sets are kept in ``--sets``, so that the script can be interrupted and resumed. It writes
``docs/results/equal-entropy.json`` for ``tiny-news`` and ``docs/results/MODEL-equal-entropy.json`` for other bundles.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from pages import DOCS, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor

import didi
from didi.evaluation.diversity import token_entropy
from didi.evaluation.equal_entropy import PerSequence, per_sequence, ratio_at_equal_entropy
from didi.evaluation.judges import load_judge
from didi.evaluation.machine import machine_name
from didi.models.inference import for_inference
from didi.sampling.prompt import decode

SEED = 20_264  # no settings were chosen with this seed
STUDENT_NFES = (8, 16)


def check_sets(args: argparse.Namespace) -> None:
    """Record in ``args.sets`` what its files are of; exits if they are of something else."""
    now = {"model": str(args.model), "network": args.network, "seed": SEED}
    file = args.sets / "about.json"
    args.sets.mkdir(parents=True, exist_ok=True)
    if file.is_file() and (old := json.loads(file.read_text("utf-8"))) != now:
        sys.exit(
            f"a folder of sets is of one model, number format and seed; {args.sets} has {old}, not {now}: name another"
        )
    write_json(file, now)


def drawn(args: argparse.Namespace, role: str, nfe: int, temperature: float) -> Int[Tensor, "n l"]:
    """A sample set; an existing file in ``args.sets`` is reused."""
    file = args.sets / f"{role}-{nfe}-{temperature:g}-{args.num_samples}.safetensors"
    if not file.is_file():
        bundle = for_inference(didi.load(args.model), args.network)
        samples = didi.generate(
            bundle, num_samples=args.num_samples, nfe=nfe, seed=SEED, role=role, temperature=temperature
        )
        save_file({"tokens": samples.tokens.contiguous()}, file)
    return load_file(file)["tokens"]


def scored(args: argparse.Namespace, judge: str, name: str, tokens: Callable[[], Int[Tensor, "n l"]]) -> PerSequence:
    """Scores of a set; an existing file in ``args.sets`` is reused."""
    file = args.sets / f"{name}-{args.num_samples}-{judge.replace('/', '-')}.safetensors"
    if not file.is_file():
        scores = load_judge(judge).score(decode(didi.load(args.model), tokens()), tokens())
        save_file({"values": per_sequence(scores, token_entropy(tokens()))}, file)
    return load_file(file)["values"]


def of_network(args: argparse.Namespace, judge: str, role: str, nfe: int, temperature: float = 1.0) -> PerSequence:
    """Scores of samples of a network."""
    return scored(args, judge, f"{role}-{nfe}-{temperature:g}", lambda: drawn(args, role, nfe, temperature))


def rows(args: argparse.Namespace, judge: str, teacher_nfe: int) -> list[dict[str, Any]]:
    """The student at each of ``STUDENT_NFES`` against the teacher at the same entropy."""
    sweep = [of_network(args, judge, "teacher", teacher_nfe, temperature) for temperature in args.temperatures]
    compared = []
    for nfe in STUDENT_NFES:
        student = of_network(args, judge, "student", nfe)
        ratio, interval = ratio_at_equal_entropy(student, sweep)
        compared.append({"nfe": nfe, "against": f"teacher at {teacher_nfe}", "ratio": ratio, "interval": interval})
        print(f"{judge}, student at {nfe}: {ratio:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]")
    return compared


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--model", default="tiny-news")
    parser.add_argument("--judge", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--teacher-nfe", type=int, default=128)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.9, 1.0])
    parser.add_argument("--network", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--num-samples", type=int, default=1024)
    args = parser.parse_args(words)
    if len(args.temperatures) < 2:
        parser.error(f"--temperatures takes two values or more; got {len(args.temperatures)}")
    check_sets(args)
    name = "equal-entropy.json" if args.model == "tiny-news" else f"{Path(args.model).name}-equal-entropy.json"
    settings = {"model": args.model, "seed": SEED, "num_samples": args.num_samples, "network": args.network}
    settings["machine"] = machine_name()
    write_json(
        DOCS / "results" / name,
        settings | {"rows": {judge: rows(args, judge, args.teacher_nfe) for judge in args.judge}},
    )


if __name__ == "__main__":
    main()
