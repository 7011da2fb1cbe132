"""The table of reports in docs/reported-problems.md, from ``tests/reports/*.yaml``.

    python benchmarks/reports.py page

A file is a list of rows with ``report`` (number of the report, which may have several rows), ``tried``, ``before``,
``now`` and ``tests`` (``tests/FILE.py::FUNCTION``), the tests of the behaviour in ``now``.
"""

import argparse
import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from pages import DOCS, renew

from didi.markdown import markdown_table

ROOT = DOCS.parent
REPORTS = ROOT / "tests" / "reports"


@dataclass(frozen=True)
class Report:
    """One row of the table."""

    report: int
    tried: str
    before: str
    now: str
    tests: list[str]


def reports() -> list[Report]:
    """All rows, sorted by number."""
    rows = [row for file in sorted(REPORTS.glob("*.yaml")) for row in yaml.safe_load(file.read_text("utf-8"))]
    return sorted((Report(**row) for row in rows), key=lambda row: row.report)


def missing_tests(rows: Sequence[Report]) -> list[str]:
    """Names of tests that do not exist or that ``make test`` does not run."""
    return [name for row in rows for name in row.tests if not _is_run(name)]


def _is_run(name: str) -> bool:
    file, _, function = name.partition("::")
    if not (ROOT / file).is_file():
        return False
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            marks = " ".join(map(ast.unparse, node.decorator_list))
            return not re.search(r"mark\.(network|gpu|large|skip)\b", marks)
    return False


def table(rows: Sequence[Report]) -> list[str]:
    """Lines of the Markdown table."""
    cells = [[str(row.report), *(_cell(text) for text in (row.tried, row.before, row.now))] for row in rows]
    return markdown_table(["report", "tried", "before", "now"], cells, num_left=4)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page(_: argparse.Namespace) -> None:
    renew(DOCS / "reported-problems.md", "reports.py", table(reports()))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("page").set_defaults(run=page)
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
