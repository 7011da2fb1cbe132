"""Parsing of flags into dataclasses, one-line error messages and exit statuses.

``didi --help`` and ``didi --version`` import this module, so it imports torch and tyro only where they are used.
"""

import contextlib
import ctypes
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from didi.apps.streams import standard_streams, unwritten
from didi.apps.unexpected import unexpected
from didi.errors import DidiError, Diverged, Interrupted, UsageError

Parsed = TypeVar("Parsed")

# glibc's mallopt parameters, and a size above every temporary of a step.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGE = -1, -3, 2**31 - 1


def parse(
    command: type[Parsed], args: Sequence[str], *, prog: str, default: Any = None, description: str | None = None
) -> Parsed:
    """Parse flags into a dataclass.

    Args:
        command: the dataclass.
        args: the words after the command's name.
        prog: the command as a user writes it.
        default: values of the flags that are not given; those of ``command`` by default.
        description: head of ``--help``; the docstring of ``command`` by default.

    Raises:
        UsageError: A flag is unknown, missing or has an invalid value; the message is one line.
        SystemExit: The flags include ``--help`` (status 0).
    """
    import tyro

    from didi.apps.flags import parsing_rules, with_dashed_values

    options: dict[str, Any] = {"description": description} | ({} if default is None else {"default": default})
    said = io.StringIO()
    try:
        # A default is a recipe, some of whose values can be unset by the word None.
        with contextlib.redirect_stderr(said), parsing_rules(reads_none=default is not None):
            return tyro.cli(command, args=with_dashed_values(list(args)), prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(said.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """The parser's error message, which it prints as a box of several lines, in one line with its nearest option."""
    border = r"[│|╭╮╰╯─+-]*"  # ASCII if the terminal has no Unicode
    lines = [re.sub(rf"^{border} | {border}$|^{border}$", "", line).strip() for line in box.splitlines()]
    text = " ".join(line for line in lines if line and "full helptext" not in line)
    text = re.sub(r"\s*[─-]{4,}", "", text)  # horizontal rules inside the box
    if match := re.search(r"Unrecognized options: (.+?)(?: Perhaps you meant: (--\S+)| Similar|$)", text):
        unknown, nearest = match[1].split(",")[0].split()[0], match[2]
        hint = f"; did you mean {nearest}? See" if nearest else "; see"
        return f"{prog} has no option {unknown}{hint} {prog} --help"
    if text.startswith("Required options"):
        missing = " and ".join(re.findall(r"(--[a-z][\w.-]* (?:[A-Z]+|\{[^}]+\}))", text))
        return f"{prog} needs {missing}; see {prog} --help"
    if match := re.search(r"Missing value for argument '(--[\w.-]+)", text):
        flag = match[1]
        return f"{flag} needs a value; one that begins with two dashes is given as {flag}=VALUE; see {prog} --help"
    text = re.sub(r"^(Value error|Invalid choice|Required options|Parsing error|Missing value)\s+", "", text)
    text = text.split(" Argument helptext:")[0].rstrip(".")
    return f"{text}; see {prog} --help"


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit: with status 0, 2 (wrong use), 1 (failure) or 130 (interrupted).

    If the status is not 0, one line on standard error gives the reason. Standard output that cannot be written, because
    its reader has left or its disk is full, is a failure; standard error that cannot be written is dropped. If
    ``torchrun`` started several processes, the main process alone writes; a failure of another process is reported too.
    """
    _keep_freed_memory()
    with standard_streams():
        end = _ended(command)
        if (lost := unwritten(sys.stdout)) and not end.status:
            end = End(1, _reason(lost))
        _report(end)
    sys.exit(end.status)


class End(NamedTuple):
    """How a command ended: its status, the reason where it is not 0, and whether all processes ended so."""

    status: int
    reason: str = ""
    is_everywhere: bool = False


def _ended(command: Callable[[], None]) -> End:
    try:
        with _joined() as is_main, contextlib.nullcontext() if is_main else _silenced():
            command()
    except SystemExit as stop:
        if stop.code:
            raise
    except UsageError as error:
        return End(2, str(error), is_everywhere=True)
    except Interrupted as error:
        return End(130, str(error), is_everywhere=True)
    except Diverged as error:
        return End(1, str(error), is_everywhere=True)
    except DidiError as error:
        return End(1, str(error))
    except KeyboardInterrupt:
        return End(130, "interrupted", is_everywhere=True)
    except OSError as error:
        # These three are the fault of a path that a flag names.
        is_misuse = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)
        return End(2 if is_misuse else 1, _reason(error), is_everywhere=is_misuse)
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            why = str(error).strip().split("\n")[0]
            return End(1, f"torch.compile failed ({why}): install a C++ compiler, set CXX to one, or leave compile out")
        return End(1, unexpected(error))
    return End(0)


def _reason(error: OSError) -> str:
    if isinstance(error, BrokenPipeError):
        return "the reader of standard output left before all of it was written"
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason


@contextlib.contextmanager
def _joined() -> Iterator[bool]:
    """Join the processes that ``torchrun`` started; gives whether this one is the main process.

    A single process has nothing to join, and does not import torch for it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from didi.process_group import init_process_group

    with init_process_group() as here:
        yield here.is_main


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing is written within, neither results nor progress."""
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def _report(end: End) -> None:
    """One line on standard error; rank 0 reports what all processes have in common."""
    rank = os.environ.get("RANK", "0")
    if end.reason and (rank == "0" or not end.is_everywhere):
        who = "didi" if rank == "0" else f"didi, process {rank}"
        print(f"{who}: {' '.join(end.reason.split())}", file=sys.stderr)


def _keep_freed_memory() -> None:
    """Keep glibc from returning large freed blocks to the system: the page faults take longer than the arithmetic."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)
