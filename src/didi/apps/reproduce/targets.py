"""The targets of a report (tables and figures): their choice, and the writing of the report."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from didi.apps.reproduce.cells import AnyCell
from didi.apps.reproduce.study import Study
from didi.errors import Interrupted, UsageError
from didi.evaluation.report import write_html
from didi.files import write_atomically

AnyPlan = TypeVar("AnyPlan")
AnyTarget = TypeVar("AnyTarget")


@dataclass(frozen=True)
class Target(Generic[AnyPlan]):
    """A table or figure.

    Attributes:
        title: heading in the report.
        cells: function from a plan to the cells that the target needs.
        lines: function from a plan and a study with these cells to the lines of the target in the report.
    """

    title: str
    cells: Callable[[AnyPlan], Sequence[AnyCell]]
    lines: Callable[[AnyPlan, Study], list[str]]


def chosen_targets(targets: Mapping[str, AnyTarget], names: Sequence[str], what: str) -> dict[str, AnyTarget]:
    """The named targets, each once.

    Args:
        targets: all targets by name.
        names: the requested names; ``all`` stands for all targets.
        what: description of a target, for the error message.

    Raises:
        UsageError: there is no name, or an unknown name.
    """
    if not names:
        raise UsageError(f"reproduce takes one target or more: {', '.join(targets)} or all")
    if unknown := [name for name in names if name not in (*targets, "all")]:
        raise UsageError(f"{what} is one of {', '.join(targets)} or all; got {unknown[0]!r}")
    return {name: targets[name] for name in (targets if "all" in names else dict.fromkeys(names))}


def refuse_unread(command: object, names: Sequence[str], reader: str) -> None:
    """Refuse flags that are given and not read.

    Args:
        command: the parsed command, with an attribute for each flag, empty or None if the flag is not given.
        names: names of flags that are not read.
        reader: what does not read them, as the end of the message.

    Raises:
        UsageError: one of them is given.
    """
    if unread := [name for name in names if getattr(command, name)]:
        raise UsageError(f"--{unread[0]} is not read with {reader}: leave it out")


def write_report(
    study: Study,
    plan: AnyPlan,
    chosen: Mapping[str, Target[AnyPlan]],
    head: Callable[[AnyPlan, Study], list[str]],
    title: str,
) -> None:
    """Complete the cells of the chosen targets, write the report in the folder of the study, and print its path.

    Args:
        study: the study.
        plan: the plan of the targets.
        chosen: the targets of the report.
        head: function that returns the lines before the first target.
        title: heading of the report.

    Raises:
        Interrupted: the study was interrupted; completed runs and cells are kept.
    """
    with resumable(study.folder):
        study.complete([cell for target in chosen.values() for cell in target.cells(plan)])
    parts = [f"# {title}\n", *head(plan, study)]
    for name, target in chosen.items():
        print(f"writing {name}", file=sys.stderr, flush=True)
        parts += [f"\n## {target.title}\n", *target.lines(plan, study)]
    write_pages(study.folder, parts)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Context that reports an interruption of a study with its folder and how to continue.

    Raises:
        Interrupted: the study was interrupted; completed runs and cells are kept in ``folder``.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stopped:
        raise Interrupted(f"stopped; finished work is kept in {folder}: run the same command to continue") from stopped


def write_pages(folder: Path, parts: Sequence[str]) -> None:
    """Write the parts of a report as ``report.md`` and ``report.html``, and print where they are."""
    report = write_atomically(folder / "report.md", "\n".join(parts) + "\n")
    page = write_html(report)
    print(report)
    print(page)
