"""Functions of the scripts that write pages; the generated part of a page is between two markers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from didi.files import json_text, write_atomically

DOCS = Path(__file__).parents[1] / "docs"
END = "<!-- end -->"


def write_json(file: Path, record: Any) -> None:
    """Write a record as indented JSON, atomically; values that are not finite are null."""
    write_atomically(file, json_text(record, indent=1) + "\n")


def renew(page: Path, script: str, lines: Sequence[str]) -> None:
    """Replace the generated part of ``page`` that belongs to ``script``; the text around it is kept."""
    begin = f"<!-- written by benchmarks/{script} page: begin -->"
    before, marker, rest = page.read_text("utf-8").partition(begin)
    if not marker:
        raise SystemExit(f"{page} has no line {begin!r}")
    write_atomically(page, before + "\n".join([begin, *lines, END]) + rest.partition(END)[2])
