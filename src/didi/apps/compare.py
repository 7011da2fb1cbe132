"""``didi compare``: comparison of models that ``didi evaluate`` has measured, paired and at equal entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from didi.apps.outputs import refuse_existing
from didi.apps.terminal import parse
from didi.errors import UsageError
from didi.evaluation.figure import frontier_figure
from didi.evaluation.paired import models_table
from didi.evaluation.report import read_sets
from didi.evaluation.row import EvaluationRow
from didi.evaluation.sweeps import models_at_equal_entropy
from didi.files import write_atomically


@dataclass(frozen=True)
class CompareCommand:
    """Compare models that didi evaluate measured with equal flags: didi compare FOLDER FOLDER... [--out DIR]."""

    folders: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="FOLDER FOLDER...", help_behavior_hint="(required)"),
    ]
    """The --out folders of two evaluations or more; each model is compared with the first."""
    out: Path | None = None
    """Folder for compare.md and frontier.png."""
    overwrite: bool = False
    """Replace these two files in --out."""


def run_compare(args: Sequence[str]) -> None:
    """Run ``didi compare`` with the arguments after the command's name."""
    command = parse(CompareCommand, args, prog="didi compare")
    if len(command.folders) < 2:
        raise UsageError("didi compare takes two folders or more, each the --out of a didi evaluate")
    if repeated := _repeated(command.folders):
        raise UsageError(f"the folders of didi compare differ from each other; got {repeated} twice: leave one out")
    refuse_existing(command.out, ("compare.md", "frontier.png"), overwrite=command.overwrite)
    models = {str(folder): read_sets(folder) for folder in command.folders}
    rows = {name: [sample_set.row for sample_set in sets] for name, sets in models.items()}
    table = models_table(models)
    if (at_equal_entropy := models_at_equal_entropy(rows)) is not None:
        table += f"\n{at_equal_entropy}"
    elif not table.startswith("|"):
        raise UsageError(
            "an autoregressive network is compared with others at equal entropy, which takes a sweep of each: give "
            "both evaluations --temperature 0.8 0.9 1, or other values"
        )
    if command.out is not None:  # before the table is printed, which fails if the pipe is closed
        figure = frontier_figure(_figure_rows(rows), command.out / "frontier.png")
        write_atomically(command.out / "compare.md", f"{table}\n![Perplexity against entropy]({figure.name})\n")
    print(table, end="")
    if command.out is not None:
        print(command.out / "compare.md")


def _repeated(folders: Sequence[Path]) -> Path | None:
    """The first folder that is given twice, perhaps as different paths."""
    resolved = [folder.resolve() for folder in folders]
    return next((folder for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1), None)


def _figure_rows(models: Mapping[str, Sequence[EvaluationRow]]) -> list[EvaluationRow]:
    """All sampled rows, labelled with the model's name, and real data once; anchors would stretch the axes."""
    data = [row for rows in models.values() for row in rows if row.role == "data"][:1]
    return data + [replace(row, role=f"{name}: {row.role}") for name, rows in models.items() for row in rows if row.nfe]
