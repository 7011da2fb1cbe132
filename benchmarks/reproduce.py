"""The pages of ``didi reproduce``: docs/results/reproduce-markov.md, reproduce-tiny.md and decisions.md.

    didi reproduce all --scale markov --seeds 5 --out DIR
    python benchmarks/reproduce.py markov DIR

The report in DIR goes between the markers of its page, its figures beside it; the table of our decisions has a page of
its own. What is read from them, above the markers, is written by hand.
"""

import argparse
import re
import shutil
from pathlib import Path

from pages import DOCS, renew

from didi.apps.reproduce.command import TARGETS

RESULTS = DOCS / "results"
FIGURE = re.compile(r"(?<=\]\()figure\d\.png(?=\))")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=("markov", "tiny"))
    parser.add_argument("run", type=Path, help="the --out of didi reproduce")
    args = parser.parse_args()
    name = f"reproduce-{args.scale}"
    report = (args.run / "report.md").read_text()
    for figure in FIGURE.findall(report):
        shutil.copy(args.run / figure, RESULTS / f"{name}-{figure}")
    _, *rest = FIGURE.sub(lambda found: f"{name}-{found[0]}", report).splitlines()  # without its title
    conditions, *sections = re.split(r"^(?=## )", "\n".join(rest).strip() + "\n", flags=re.MULTILINE)
    ours = f"## {TARGETS['decisions'].title}"
    renew(RESULTS / f"{name}.md", "reproduce.py", [conditions, *(one for one in sections if not one.startswith(ours))])
    for section in sections:
        if section.startswith(ours):
            renew(RESULTS / "decisions.md", "reproduce.py", [conditions, section])


if __name__ == "__main__":
    main()
