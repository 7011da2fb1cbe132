"""The pages of ``didi reproduce``: docs/results/reproduce-markov.md, reproduce-tiny.md, decisions.md and teachers.md.

    didi reproduce all --scale markov --seeds 5 --out DIR
    python benchmarks/reproduce.py markov DIR

The report in DIR is written between the markers of its page, and its figures next to the page. The table of our
decisions is written to decisions.md, and the other teachers of the scale tiny to teachers.md. A page whose part is
missing in the report is not changed. The text above the markers is written by hand. The comparison of distillation
methods, at any scale, is written to methods.md:

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
    decisions = f"## {TARGETS['decisions'].title}"
    pages = {f"{name}.md": [section for section in sections if not section.startswith(decisions)]}
    pages["decisions.md"] = [section for section in sections if section.startswith(decisions)]
    if args.scale == "tiny":
        pages[f"{name}.md"], pages["teachers.md"] = without_teachers(pages[f"{name}.md"])
    for page, lines in pages.items():
        if lines:
            renew(RESULTS / page, "reproduce.py", [conditions, *lines])


def parts_of(run: Path, name: str) -> list[str]:
    """The head of a report without its title, and its sections; copies figures to the results as ``name``-FIGURE."""
    report = (run / "report.md").read_text("utf-8")
    for figure in FIGURE.findall(report):
        write_atomically(RESULTS / f"{name}-{figure}", (run / figure).read_bytes())
    _, *rest = FIGURE.sub(lambda match: f"{name}-{match[0]}", report).splitlines()
    return re.split(r"^(?=## )", "\n".join(rest).strip() + "\n", flags=re.MULTILINE)


def without_teachers(sections: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sections without their part about other teachers, and these parts, each with the heading of its section."""
    parts = [section.partition(TEACHERS) for section in sections]
    teachers = [f"{before.splitlines()[0]}\n{after}" for before, heading, after in parts if heading]
    return [f"{before.rstrip()}\n" for before, _, _ in parts], teachers


if __name__ == "__main__":
    main()
