"""What commands share with the terminal: parsing into dataclasses, one-line errors, tables."""

import contextlib
import ctypes
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from didi.errors import DidiError, UsageError
from didi.evaluation.row import EvaluationRow
from didi.training.loop import Interrupted
from didi.world import joined

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
    text = re.sub(r"\s*[─-]{4,}", "", text)  # rules that divide the box
    if match := re.search(r"Unrecognized options: (.+?)(?: Perhaps you meant: (--\S+)| Similar|$)", text):
        unknown, nearest = match[1].split(",")[0].split()[0], match[2]
        hint = f"; did you mean {nearest}?" if nearest else ""
        return f"{prog} has no option {unknown}{hint} See {prog} --help"
    if text.startswith("Required options"):
        missing = " and ".join(re.findall(r"(--[a-z][\w.-]* (?:[A-Z]+|\{[^}]+\}))", text))
        return f"{prog} needs {missing}; see {prog} --help"
    text = re.sub(r"^(Value error|Invalid choice|Required options|Parsing error|Missing value)\s+", "", text)
    text = text.split(" Argument helptext:")[0]
    return f"{text}; see {prog} --help"


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and leave: status 0; 2 for wrong use, 1 for failure, 130 if interrupted, and one line says why."""
    _keep_freed_memory()
    try:
        with joined() as here, contextlib.nullcontext() if here.is_main else contextlib.redirect_stdout(io.StringIO()):
            command()
    except UsageError as error:
        _leave(str(error), 2)
    except Interrupted as error:
        _leave(str(error), 130)
    except DidiError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        is_misuse = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)  # a path in a flag
        _leave(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2 if is_misuse else 1)
    sys.exit(0)


def _leave(message: str, status: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")  # of several processes, all say the same of wrong use
    if rank == "0" or status == 1:
        who = "didi" if rank == "0" else f"didi, process {rank}"
        print(f"{who}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _keep_freed_memory() -> None:
    """Tell glibc not to hand large freed blocks back to the system: page faults cost more than the arithmetic."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)


class ResultConsole(Console):
    """Standard output, whose reader may leave early: ``run`` ends that quietly."""

    def on_broken_pipe(self) -> None:
        """Not rich's own answer, which is to exit with status 1."""
        raise BrokenPipeError


def print_rows(rows: Sequence[EvaluationRow], *, title: str, console: Console) -> None:
    """Evaluation rows as a table that fits a terminal of 80 columns; the full one is in the report."""
    is_guided = any(row.discriminator_passes for row in rows)
    table = Table(
        title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("model", no_wrap=True)
    if is_guided:
        table.add_column("sampler", no_wrap=True)
    for name in ("NFE", "disc." if is_guided else "passes", "perplexity", "entropy", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        passes = row.discriminator_passes if is_guided else row.student_passes
        drawn = [str(row.nfe), f"{passes:.1f}"] if row.nfe else ["-", "-"]
        guided = [row.sampler or "-"] if is_guided else []
        decimals = ".0f" if row.gen_ppl >= 100 else ".1f" if row.gen_ppl >= 20 else ".2f"
        figures = [_with_interval(row.gen_ppl, row.gen_ppl_ci, decimals)]
        figures += [_with_interval(row.entropy, row.entropy_ci, ".2f")]
        speed = f"{row.tokens_per_second:,.0f}" if row.nfe else "-"
        departure = "".join(
            [f" T {row.temperature:g}"] * (row.temperature != 1) + [f" p {row.top_p:g}"] * (row.top_p != 1)
        )
        table.add_row(row.role + departure, *guided, *drawn, *figures, speed)
    console.print(table)


def _with_interval(value: float, ends: tuple[float, float], spec: str) -> str:
    return f"{value:{spec}} [{ends[0]:{spec}}, {ends[1]:{spec}}]"
