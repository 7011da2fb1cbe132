"""Trials of settings of the distillation methods on a world, judged on a validation seed.

    python benchmarks/method_search.py WORLD [--methods didi sdtt] [--trials FILE] [--out FOLDER] [--workers 2]

The trials of a world are in ``benchmarks/method_search/WORLD.yaml``: for each method a list of mappings from dotted
settings to values, which replace those of the method's recipe; an empty mapping is the recipe itself. Each is trained
and measured in a process of one thread. What is done is kept in FOLDER, and the same command goes on. All trials go to
FOLDER/trials.json, a table to standard output. ``didi reproduce --methods``, which compares the
methods, has other training seeds and another seed of samples.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pages import write_json

from didi.apps.reproduce.cells import Cell, Run
from didi.apps.reproduce.command import SAMPLING
from didi.apps.reproduce.cost import read_cost
from didi.apps.reproduce.method_measures import measures
from didi.apps.reproduce.method_tables import millions
from didi.apps.reproduce.methods import WORLDS, MethodPlan, method_plan
from didi.apps.reproduce.study import Study, make
from didi.apps.reproduce.workers import run_items
from didi.errors import DidiError, Interrupted
from didi.markdown import markdown_table
from didi.methods.settings import DistillationConfig
from didi.models.untrusted import read_yaml, record_from

TRAINING_SEED, SAMPLE_SEED = 100, 20_265
NFES = {"exact": (2, 4, 8), "markov": (4, 8, 16), "tiny": (4, 8, 16)}


@dataclass(frozen=True)
class Trial:
    """Settings of a method to try.

    Attributes:
        method: its name.
        settings: dotted settings that differ from the recipe's.
        plan: a comparison of this one student.
    """

    method: str
    settings: Mapping[str, Any]
    plan: MethodPlan


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as mappings within mappings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, last = name.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return found


def with_settings(config: DistillationConfig, settings: Mapping[str, Any]) -> DistillationConfig:
    """A recipe with some settings replaced.

    Raises:
        UsageError: a setting is unknown or out of range.
    """
    return record_from(type(config), nested(settings), source=f"a trial of {config.recipe}", base=config)


def trials_of(scale: str, listed: Mapping[str, Sequence[Mapping[str, Any]]], methods: Sequence[str]) -> list[Trial]:
    """All trials of the chosen methods, or of all that are listed; settings are checked before any work."""
    found = []
    for method in methods or listed:
        plan = method_plan(scale, [method], 1)
        for settings in listed[method]:
            config = with_settings(plan.configs[method], settings)
            world = replace(plan.world, nfes=NFES[scale])
            one = replace(plan, configs={method: config}, seeds=(TRAINING_SEED,), world=world)
            found.append(Trial(method, settings, one))
    return found


def students(trial: Trial) -> list[Cell]:
    """The cells of the trial's student at each number of moves, with its first sampler."""
    curve = trial.plan.curves[0]
    return [cell for nfe in curve.nfes for cell in curve.cells(nfe)]


def attempt(trial: Trial, study: Study) -> str:
    """Train and measure a trial; a failure, as of a run that diverges, is told and ends no other trial."""
    try:
        study.complete([*students(trial), *trial.plan.frontier])
    except Interrupted:
        raise
    except DidiError as error:
        return f"{trial.method} {dict(trial.settings)}: {error}"
    return f"{trial.method} {dict(trial.settings)}: done"


def record(trial: Trial, study: Study) -> dict[str, Any]:
    """What is told of a trial; quality is NaN where it failed."""
    (run,) = trial.plan.runs(trial.method)
    cells = students(trial)
    quality = dict.fromkeys((str(cell.nfe) for cell in cells), math.nan)
    if all(map(study.has, [*cells, *trial.plan.frontier])):
        measure = measures(trial.plan, study)[0]
        quality = {str(cell.nfe): measure.of(study.row(cell)) for cell in cells}
    spent = read_cost(study.cost_file(run))
    return {"method": trial.method, "settings": dict(trial.settings), **asdict(spent), "quality": quality}


def table(records: Sequence[Mapping[str, Any]], nfes: Sequence[int]) -> list[str]:
    """Every trial, with its quality at each number of moves."""
    body = []
    for one in records:
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items()) or "the recipe"
        figures = [one["quality"].get(str(nfe)) for nfe in nfes]
        shown = ["" if value is None else "failed" if math.isnan(value) else f"{value:.4f}" for value in figures]
        body.append([one["method"], settings, millions(one["sequence_passes"]), f"{one['seconds']:.0f}", *shown])
    header = ["method", "settings", "million passes", "seconds", *(f"{nfe} moves" for nfe in nfes)]
    return markdown_table(header, body, num_left=2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=tuple(WORLDS))
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--trials", type=Path, help="a YAML file instead of that of the world")
    parser.add_argument("--out", type=Path, help="by default runs/method-search-WORLD")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    listed = read_yaml(args.trials or Path(__file__).parent / "method_search" / f"{args.world}.yaml")
    trials = trials_of(args.world, listed, args.methods)
    folder = args.out or Path("runs") / f"method-search-{args.world}"
    study = Study(folder, replace(SAMPLING[args.world], seed=SAMPLE_SEED), workers=1)
    shared = [trial.plan for trial in trials]
    study.complete([cell for plan in shared for cell in plan.frontier])  # what trials share, before they run
    for teacher in {one for plan in shared for one in plan.teachers.values() if isinstance(one, Run)}:
        make(teacher, study)
    say = partial(print, file=sys.stderr, flush=True)
    if args.workers == 1:
        for trial in trials:
            say(attempt(trial, study))
    else:
        run_items(partial(attempt, study=study), trials, args.workers, say)
    records = [record(trial, study) for trial in trials]
    write_json(folder / "trials.json", {"seed": TRAINING_SEED, "samples": SAMPLE_SEED, "trials": records})
    print("\n".join(table(records, NFES[args.world])))


if __name__ == "__main__":
    main()
