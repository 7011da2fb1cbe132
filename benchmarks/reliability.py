"""The figures of docs/reliability.md: faults injected into runs, and fuzzing with malformed and malicious files.

    python benchmarks/reliability.py measure --out FILE [--kills 20] [--inputs 12000]
    python benchmarks/reliability.py page [--from FILE]

``measure`` takes some 20 minutes on one core; ``page`` updates the tables of the page.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import DOCS, renew, write_json
from reliability_faults import damaged, killed, terminated
from reliability_inputs import KINDS, fuzz

from didi.evaluation.machine import machine_name
from didi.files import write_atomically
from didi.markdown import markdown_table

STORED = DOCS / "results" / "reliability.json"
RECOVERED = (
    "Recovered: the resumed run ends with the bundle of an uninterrupted run; for a damaged checkpoint, the one before "
    "it is loaded."
)


def measure(args: argparse.Namespace) -> None:
    record: dict[str, Any] = {"machine": machine_name(), "faults": {}, "inputs": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, inject in (
            ("SIGKILL at a random moment", lambda: killed(args.kills, folder / "kill")),
            ("newest checkpoint cut or a bit flipped", lambda: damaged(args.kills * 10, folder / "damage")),
            ("SIGTERM at a random moment of training", lambda: terminated(args.kills, folder / "term")),
        ):
            print(name, flush=True)
            record["faults"][name] = inject()
            print(record["faults"][name], flush=True)
        for kind in KINDS:
            (folder / "fuzz" / kind.replace("/", "-")).mkdir(parents=True)
            record["inputs"][kind] = fuzz(kind, args.inputs // len(KINDS), folder / "fuzz" / kind.replace("/", "-"))
            print(kind, record["inputs"][kind], flush=True)
    write_json(args.out, record)


def page(args: argparse.Namespace) -> None:
    if args.source:
        write_atomically(STORED, args.source.read_bytes())
    record = json.loads(STORED.read_text("utf-8"))
    faults = []
    for name, row in record["faults"].items():
        note = f"; saved within {row['seconds']:.1f} s" if "seconds" in row else ""
        faults.append([name, f"{row['runs']:.0f}", f"{row['recovered']:.0f}{note}"])
    inputs = []
    total: Counter[str] = Counter()
    for kind, row in record["inputs"].items():
        cells = {name: row[name] for name in ("inputs", "refused", "read", "escapes")}
        total.update(cells)
        inputs.append([kind, *(f"{value:,}" for value in cells.values())])
    inputs.append(["**all**", *(f"{total[name]:,}" for name in ("inputs", "refused", "read", "escapes"))])
    lines = markdown_table(["fault", "runs", "recovered"], faults)
    lines.append(f"\n{RECOVERED}")
    header = ["hostile input", "inputs", "refused in one line", "read as valid", "escapes"]
    lines += ["", *markdown_table(header, inputs)]
    lines.append(f"\n{record['machine']}.")
    renew(DOCS / "reliability.md", "reliability.py", lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.set_defaults(run=measure)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--kills", type=int, default=20)
    command.add_argument("--inputs", type=int, default=12_000)
    command = commands.add_parser("page")
    command.set_defaults(run=page)
    command.add_argument("--from", dest="source", type=Path)
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
