"""What commands share with the terminal: parsing into dataclasses, one-line errors, tables."""

import contextlib
import ctypes
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from didi.errors import DidiError, UsageError
from didi.evaluation.row import EvaluationRow

Parsed = TypeVar("Parsed")

# glibc's mallopt parameters, and a size above every temporary of a step.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGE = -1, -3, 2**31 - 1


def parse(command: type[Parsed], args: Sequence[str], *, prog: str, default: Any = None) -> Parsed:
    """Read flags into a dataclass.

    Raises:
        UsageError: a flag is unknown, missing or has a value that does not fit; in one line.
        SystemExit: ``--help`` was asked for (status 0).
    """
    options = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(command, args=list(args), prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(said.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """The message of a many-line box of the parser, with the nearest option it suggests."""
    border = r"[│|╭╮╰╯─+-]*"  # drawn in ASCII where the terminal knows no more
    lines = [re.sub(rf"^{border} | {border}$|^{border}$", "", line).strip() for line in box.splitlines()]
    text = " ".join(line for line in lines if line and "full helptext" not in line)
    if match := re.search(r"Unrecognized options: (.+?)(?: Perhaps you meant: (--\S+)| Similar|$)", text):
        unknown, nearest = match[1].split(",")[0].split()[0], match[2]
        hint = f"; did you mean {nearest}?" if nearest else ""
        return f"{prog} has no option {unknown}{hint} See {prog} --help"
    if text.startswith("Required options"):
        missing = " and ".join(re.findall(r"(--[a-z][\w.-]* [A-Z]+)", text))
        return f"{prog} needs {missing}; see {prog} --help"
    text = re.sub(r"^(Value error|Invalid choice|Required options|Parsing error|Missing value)\s+", "", text)
    text = text.split(" Argument helptext:")[0]
    return f"{text}; see {prog} --help"


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and leave: status 0, 2 for wrong use, 1 for failure, 130 for Ctrl-C; one line says why."""
    _keep_freed_memory()
    try:
        command()
    except UsageError as error:
        _leave(str(error), 2)
    except DidiError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


def _leave(message: str, status: int) -> NoReturn:
    print(f"didi: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _keep_freed_memory() -> None:
    """Tell glibc not to hand large freed blocks back to the system: page faults cost more than the arithmetic."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)


def print_rows(rows: Sequence[EvaluationRow], *, title: str, console: Console) -> None:
    """Evaluation rows as a table that fits a terminal; the full one is in the report."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("model", "sampler"):
        table.add_column(name)
    for name in ("NFE", "passes", "disc.", "perplexity [95% CI]", "entropy [95% CI]", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        is_drawn = row.nfe > 0
        table.add_row(
            row.role,
            row.sampler or "-",
            str(row.nfe) if is_drawn else "-",
            f"{row.student_passes:.1f}" if is_drawn else "-",
            f"{row.discriminator_passes:.1f}" if is_drawn else "-",
            f"{row.gen_ppl:.2f} [{row.gen_ppl_ci[0]:.2f}, {row.gen_ppl_ci[1]:.2f}]",
            f"{row.entropy:.3f} [{row.entropy_ci[0]:.3f}, {row.entropy_ci[1]:.3f}]",
            f"{row.tokens_per_second:,.0f}" if is_drawn else "-",
        )
    console.print(table)
