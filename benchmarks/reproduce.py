"""The pages of ``didi reproduce``: docs/results/reproduce-markov.md, reproduce-tiny.md, decisions.md and teachers.md.

    didi reproduce all --scale markov --seeds 5 --out DIR
    python benchmarks/reproduce.py markov DIR

The report in DIR goes between the markers of its page, its figures beside it; the table of our decisions has a page of
its own, and so have the other teachers of the scale tiny. A page whose part the report lacks stays as it is. The prose
above the markers is written by hand. The comparison of distillation methods, at any scale, goes to methods.md:

    didi reproduce figure1 figure3 table1 --scale exact --methods all --seeds 5 --out DIR
    python benchmarks/reproduce.py exact DIR --methods
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pages import DOCS, renew

from didi.apps.reproduce.command import TARGETS
from didi.files import write_atomically

RESULTS = DOCS / "results"
FIGURE = re.compile(r"(?<=\]\()figure\d(?:-teachers|-methods)?\.png(?=\))")
TEACHERS = "### Other teachers\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=("exact", "markov", "tiny"))
    parser.add_argument("run", type=Path, help="the --out of didi reproduce")
    parser.add_argument("--methods", action="store_true", help="the run compares distillation methods")
    args = parser.parse_args(words)
    name = f"reproduce-{args.scale}"
    conditions, *sections = parts_of(args.run, name)
    if args.methods:
        body = [re.sub("^## ", "### ", section) for section in sections]
        renew(RESULTS / "methods.md", f"reproduce.py {args.scale}", [conditions, *body])
        return
    is_ours = [section.startswith(f"## {TARGETS['decisions'].title}") for section in sections]
    pages = {f"{name}.md": [one for one, ours in zip(sections, is_ours, strict=True) if not ours]}
    pages["decisions.md"] = [one for one, ours in zip(sections, is_ours, strict=True) if ours]
    if args.scale == "tiny":
        pages[f"{name}.md"], pages["teachers.md"] = without_teachers(pages[f"{name}.md"])
    for page, lines in pages.items():
        if lines:
            renew(RESULTS / page, "reproduce.py", [conditions, *lines])


def parts_of(run: Path, name: str) -> list[str]:
    """The conditions of a report and its sections, without the title; its figures are copied, as ``name``-FIGURE."""
    report = (run / "report.md").read_text()
    for figure in FIGURE.findall(report):
        write_atomically(RESULTS / f"{name}-{figure}", (run / figure).read_bytes())
    _, *rest = FIGURE.sub(lambda found: f"{name}-{found[0]}", report).splitlines()
    return re.split(r"^(?=## )", "\n".join(rest).strip() + "\n", flags=re.MULTILINE)


def without_teachers(sections: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sections without the other teachers, and what they say of these, under the headings of the sections."""
    parts = [section.partition(TEACHERS) for section in sections]
    taken = [f"{own.splitlines()[0]}\n{of_teachers}" for own, found, of_teachers in parts if found]
    return [f"{own.rstrip()}\n" for own, _, _ in parts], taken


if __name__ == "__main__":
    main()
