"""What the scripts that write pages share: the part of a page that is generated stands between two markers."""

from collections.abc import Sequence
from pathlib import Path

from didi.files import write_atomically

DOCS = Path(__file__).parents[1] / "docs"
END = "<!-- end -->"


def renew(page: Path, script: str, lines: Sequence[str]) -> None:
    """Replace the part of ``page`` that ``script`` wrote; the prose around it stays."""
    begin = f"<!-- written by benchmarks/{script} page: begin -->"
    before, found, rest = page.read_text().partition(begin)
    if not found:
        raise SystemExit(f"{page} has no line {begin!r}")
    write_atomically(page, before + "\n".join([begin, *lines, END]) + rest.partition(END)[2])
