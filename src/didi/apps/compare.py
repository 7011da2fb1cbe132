"""``didi compare``: models that ``didi evaluate`` has measured, pair by pair and at equal entropy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from didi.apps.terminal import parse
from didi.errors import UsageError
from didi.evaluation.figure import frontier_figure
from didi.evaluation.paired import models_table
from didi.evaluation.report import read_sets, write_text
from didi.evaluation.sweeps import equal_entropy_table


@dataclass(frozen=True)
class CompareCommand:
    """Compare models that didi evaluate measured with the same flags: didi compare FOLDER FOLDER... [--out DIR]."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """The --out of two evaluations or more; each model is compared with the first."""
    out: Path | None = None
    """Folder for compare.md and frontier.png."""


def run_compare(args: Sequence[str]) -> None:
    """Run ``didi compare`` with the words after it."""
    command = parse(CompareCommand, args, prog="didi compare")
    if len(set(command.folders)) < 2:
        raise UsageError("didi compare takes two folders or more, each the --out of a didi evaluate")
    models = {str(folder): read_sets(folder) for folder in command.folders}
    table = models_table(models)
    rows = [replace(one.row, role=f"{name}: {one.row.role}") for name, sets in models.items() for one in sets]
    if (at_equal_entropy := equal_entropy_table(rows)) is not None:
        table += f"\n{at_equal_entropy}"
    print(table, end="")
    if command.out is not None:
        frontier_figure(rows, command.out / "frontier.png")
        print(write_text(command.out / "compare.md", f"{table}\n![Perplexity against entropy](frontier.png)\n"))
