"""Search of settings of distillation methods, with equal numbers of trials and equal budgets for all methods.

    python benchmarks/method_search.py exact --out DIR [--methods sdtt mmd] [--workers 2]

``benchmarks/method_search/DATA.yaml`` lists the trials: flags of ``didi distill`` in addition to a method's recipe.
Each trial is trained with a seed that no reported result uses and with an equal number of network passes, and evaluated
with the flags in the file. Networks under ``pretrained``, to which flags refer as ``{RECIPE}``, are trained first.
Finished trials are reused. The script writes ``docs/results/method-search-DATA.json`` and a table of
``docs/results/methods.md``.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from pages import DOCS, renew, write_json

from didi.apps.reproduce.cost import sequence_passes
from didi.evaluation.machine import machine_name
from didi.markdown import markdown_table

TRIALS = Path(__file__).parent / "method_search"
NAMES = {"kl": "KL", "joint_kl": "joint KL"}  # of measures, in the table
KEPT = ("nfe", "sampler", "kl", "reverse_kl", "joint_kl", "pair_kl", "joint_entropy", "gen_ppl", "entropy")


def command(*words: str) -> None:
    """Run ``didi`` in a process of one thread.

    Raises:
        RuntimeError: the command fails; the message has its last line of output.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-m", "didi", *words], capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RuntimeError(f"didi {' '.join(words)}: {ended.stderr.strip().splitlines()[-1]}")


def trial(data: str, plan: dict[str, Any], method: str, flags: str, folder: Path) -> dict[str, Any]:
    """Train and evaluate one trial; an existing result in its folder is reused."""
    result = folder / "trial.json"
    if not result.is_file():
        run, words = folder / "run", ["--seed", str(plan["seed"]), "--max-passes", str(plan["passes"])]
        needed = plan.get("pretrained", {}).items()
        there = {recipe: bundle_of(recipe, steps, folder.parent) for recipe, steps in needed}
        words += [word.format(**there) for word in flags.split()]
        if not (run / "bundle").is_dir():
            command("distill", data, "--method", method, "--out", str(run), "--overwrite", *words)
        of_method = plan["methods"][method]
        sampler, nfes = of_method.get("sampler", "default"), of_method.get("nfe", plan["nfe"])
        measured, moves = folder / "evaluation", [str(nfe) for nfe in nfes]
        asked = ["--role", "student", "--sampler", sampler, "--nfe", *moves, "--out", str(measured), "--overwrite"]
        asked += [word.format(**there) for word in plan["evaluate"].split()]
        command("evaluate", "--model", str(run / "bundle"), *asked)
        rows = json.loads((measured / "metrics.json").read_text("utf-8"))
        kept = [{name: row[name] for name in KEPT if row.get(name) is not None} for row in rows]
        passes = sequence_passes(run / "metrics.jsonl")
        write_json(result, {"method": method, "flags": flags, "passes": passes, "rows": kept})
    read: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return read


def bundle_of(recipe: str, steps: int, out: Path) -> Path:
    """Path of the bundle of a recipe under ``pretrained``."""
    return out / f"{recipe}-{steps}" / "bundle"


def pretrain(recipe: str, steps: int, out: Path) -> None:
    """Train a network that trials need, unless its bundle exists."""
    bundle = bundle_of(recipe, steps, out)
    if not bundle.is_dir():
        command("pretrain", recipe, "--max-steps", str(steps), "--out", str(bundle.parent), "--overwrite")


def trial_digest(plan: dict[str, Any], method: str, flags: str) -> str:
    """Digest of everything that a trial depends on, so that it is repeated if the plan changes."""
    inputs = {name: plan[name] for name in ("seed", "passes", "nfe", "evaluate")}
    if "pretrained" in plan:
        inputs["pretrained"] = plan["pretrained"]
    of_method = {name: value for name, value in plan["methods"][method].items() if name != "trials"}
    return hashlib.sha256(json.dumps([inputs, of_method, flags], sort_keys=True).encode()).hexdigest()[:10]


def table_of(trials: Sequence[dict[str, Any]], measure: str) -> list[str]:
    """A table of all trials: flags, training budget and divergence at each number of moves.

    Args:
        trials: records of trials, as stored in ``method-search-DATA.json``.
        measure: field of a row, ``kl`` or ``joint_kl``.
    """
    nfes = sorted({row["nfe"] for record in trials for row in record["rows"]})
    body = [
        [record["method"], record["flags"] or "the recipe", f"{record['passes'] / 1e6:.3g}"]
        + [next((f"{row[measure]:.4f}" for row in record["rows"] if row["nfe"] == nfe), "–") for nfe in nfes]
        for record in trials
    ]
    moves = [f"{NAMES[measure]}, {nfe} move{'s' if nfe > 1 else ''}" for nfe in nfes]
    return markdown_table(["method", "flags", "million sequence passes", *moves], body, num_left=2)


def main(words: Sequence[str] | None = None) -> None:
    """Run the missing trials; print and write the results of all trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(file.stem for file in TRIALS.glob("*.yaml")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(words)
    plan = yaml.safe_load((TRIALS / f"{args.data}.yaml").read_text("utf-8"))
    named = [
        (method, flags, args.out / f"{method}-{trial_digest(plan, method, flags)}")
        for method, entry in plan["methods"].items()
        for flags in entry["trials"]
    ]
    with ThreadPoolExecutor(args.workers) as pool:
        needed = plan.get("pretrained", {}).items()
        for made in [pool.submit(pretrain, recipe, steps, args.out) for recipe, steps in needed]:
            made.result()
        waiting = [
            pool.submit(trial, args.data, plan, method, flags, folder)
            for method, flags, folder in named
            if method in (args.methods or plan["methods"])
        ]
        for future in as_completed(waiting):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            print(future.result(), file=sys.stderr, flush=True)
    trials = [
        trial(args.data, plan, method, flags, folder)
        for method, flags, folder in named
        if (folder / "trial.json").is_file()
    ]
    table = table_of(trials, plan["measure"])
    print("\n".join(table))
    header = {"data": args.data, "seed": plan["seed"], "passes": plan["passes"], "machine": machine_name()}
    write_json(DOCS / "results" / f"method-search-{args.data}.json", header | {"trials": trials})
    renew(DOCS / "results" / "methods.md", f"method_search.py {args.data}", table)


if __name__ == "__main__":
    main()
