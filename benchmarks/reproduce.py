"""The pages of ``didi reproduce``: docs/results/reproduce-markov.md, reproduce-tiny.md, decisions.md and teachers.md.

    didi reproduce all --scale markov --seeds 5 --out DIR
    python benchmarks/reproduce.py markov DIR

The report in DIR goes between the markers of its page, its figures beside it; the table of our decisions has a page of
its own, and so have the other teachers of the scale tiny. A page whose part the report lacks stays as it is. The prose
above the markers is written by hand.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pages import DOCS, renew

from didi.apps.reproduce.command import TARGETS
from didi.files import write_atomically

RESULTS = DOCS / "results"
FIGURE = re.compile(r"(?<=\]\()figure\d(?:-teachers)?\.png(?=\))")
TEACHERS = "### Other teachers\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=("markov", "tiny"))
    parser.add_argument("run", type=Path, help="the --out of didi reproduce")
    args = parser.parse_args(words)
    name = f"reproduce-{args.scale}"
    report = (args.run / "report.md").read_text()
    for figure in FIGURE.findall(report):
        write_atomically(RESULTS / f"{name}-{figure}", (args.run / figure).read_bytes())
    _, *rest = FIGURE.sub(lambda found: f"{name}-{found[0]}", report).splitlines()  # without its title
    conditions, *sections = re.split(r"^(?=## )", "\n".join(rest).strip() + "\n", flags=re.MULTILINE)
    is_ours = [section.startswith(f"## {TARGETS['decisions'].title}") for section in sections]
    pages = {f"{name}.md": [one for one, ours in zip(sections, is_ours, strict=True) if not ours]}
    pages["decisions.md"] = [one for one, ours in zip(sections, is_ours, strict=True) if ours]
    if args.scale == "tiny":
        pages[f"{name}.md"], pages["teachers.md"] = without_teachers(pages[f"{name}.md"])
    for page, lines in pages.items():
        if lines:
            renew(RESULTS / page, "reproduce.py", [conditions, *lines])


def without_teachers(sections: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sections without the other teachers, and what they say of these, under the headings of the sections."""
    parts = [section.partition(TEACHERS) for section in sections]
    taken = [f"{own.splitlines()[0]}\n{of_teachers}" for own, found, of_teachers in parts if found]
    return [f"{own.rstrip()}\n" for own, _, _ in parts], taken


if __name__ == "__main__":
    main()
