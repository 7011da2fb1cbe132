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
from typing import Any, NoReturn, TypeVar

from didi.errors import DidiError, Diverged, Interrupted, UsageError

Parsed = TypeVar("Parsed")

# glibc's mallopt parameters, and a size above every temporary of a step.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGE = -1, -3, 2**31 - 1


def parse(command: type[Parsed], args: Sequence[str], *, prog: str, default: Any = None) -> Parsed:
    """Parse flags into a dataclass.

    Raises:
        UsageError: A flag is unknown, missing or has an invalid value; the message is one line.
        SystemExit: The flags include ``--help`` (status 0).
    """
    import tyro

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
    """The parser's error message, which it prints as a box of several lines, in one line with its nearest option."""
    border = r"[│|╭╮╰╯─+-]*"  # ASCII if the terminal has no Unicode
    lines = [re.sub(rf"^{border} | {border}$|^{border}$", "", line).strip() for line in box.splitlines()]
    text = " ".join(line for line in lines if line and "full helptext" not in line)
    text = re.sub(r"\s*[─-]{4,}", "", text)  # horizontal rules inside the box
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
    """Run a command and exit: with status 0, 2 (wrong use), 1 (failure) or 130 (interrupted).

    If the status is not 0, one line on standard error gives the reason. If ``torchrun`` started several processes, the
    main process alone writes to standard output and standard error; a failure of another process is reported as well.
    """
    _keep_freed_memory()
    try:
        with _joined() as is_main, contextlib.nullcontext() if is_main else _silenced():
            command()
    except UsageError as error:
        _leave(str(error), 2)
    except Interrupted as error:
        _leave(str(error), 130)
    except Diverged as error:
        _leave(str(error), 1, is_everywhere=True)
    except DidiError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:  # the reader of standard output closed it, as `| head` does
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        # These three are the fault of a path that a flag names.
        is_misuse = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)
        _leave(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2 if is_misuse else 1)
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().split("\n")[0]
        _leave(f"torch.compile failed ({reason}): install a C++ compiler, set CXX to one, or leave compile out", 1)
    sys.exit(0)


@contextlib.contextmanager
def _joined() -> Iterator[bool]:
    """Join the processes that ``torchrun`` started; gives whether this one is the main process.

    A single process has nothing to join, and does not import torch for it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from didi.world import joined

    with joined() as here:
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


def _leave(message: str, status: int, *, is_everywhere: bool = False) -> NoReturn:
    rank = os.environ.get("RANK", "0")  # wrong use is the same in all processes; rank 0 reports it
    if rank == "0" or (status == 1 and not is_everywhere):
        who = "didi" if rank == "0" else f"didi, process {rank}"
        print(f"{who}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _keep_freed_memory() -> None:
    """Keep glibc from returning large freed blocks to the system: the page faults take longer than the arithmetic."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)
