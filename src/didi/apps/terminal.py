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

from didi.apps.streams import flush_error, standard_streams
from didi.apps.unexpected import unexpected
from didi.errors import DidiError, Diverged, Interrupted, UsageError, suggestion

Parsed = TypeVar("Parsed")

NO_VALUES = "no values"
"""The parser's error for a flag that takes several values and has none; see ``flags.parsing_rules``."""

# Parameters of glibc's mallopt, and the largest value that it takes, an int.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGE = -1, -3, 2**31 - 1


def parse(
    command: type[Parsed], args: Sequence[str], *, prog: str, default: Any = None, description: str | None = None
) -> Parsed:
    """Parse flags into a dataclass.

    Args:
        command: the dataclass.
        args: the arguments after the command's name.
        prog: the command line up to the flags, for messages.
        default: values of flags that are not given; by default those of ``command``.
        description: description in ``--help``; by default the docstring of ``command``.

    Raises:
        UsageError: A flag is unknown, missing or has an invalid value; the message is one line.
        SystemExit: The flags include ``--help`` (status 0).
    """
    import tyro

    from didi.apps.flags import parsing_rules, with_dashed_values

    options: dict[str, Any] = {"description": description} | ({} if default is None else {"default": default})
    messages = io.StringIO()
    try:
        # With a default, which is a recipe, the word None unsets an optional value.
        with contextlib.redirect_stderr(messages), parsing_rules(reads_none=default is not None):
            return tyro.cli(command, args=with_dashed_values(list(args)), prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        has_model = any(word.split("=")[0] == "--model" for word in args)
        lacks_model = "model" in getattr(command, "__dataclass_fields__", ()) and not has_model
        raise UsageError(_one_line(messages.getvalue(), prog, lacks_model=lacks_model)) from None


def _one_line(box: str, prog: str, *, lacks_model: bool = False) -> str:
    """One line for an error message of the parser, which is a box of several lines: the flag, the rule, the value.

    Args:
        box: the message of the parser.
        prog: the command line up to the flags.
        lacks_model: whether the command has a flag ``--model`` that is not given.
    """
    border = r"[│|╭╮╰╯─+-]*"  # ASCII if the terminal has no Unicode
    lines = [re.sub(rf"^{border} | {border}$|^{border}$", "", line).strip() for line in box.splitlines()]
    text = " ".join(line for line in lines if line and "full helptext" not in line)
    text = re.sub(r"\s*[─-]{4,}", "", text)  # horizontal rules inside the box
    if match := re.search(r"Unrecognized options: (.+?)(?: Perhaps you meant: (--\S+)| Similar|$)", text):
        unknown, nearest = match[1].split(",")[0].split()[0], match[2]
        if lacks_model and not unknown.startswith("-"):
            return f"{prog} has no option {unknown}; give a model with --model {unknown}; see {prog} --help"
        hint = f"; did you mean {nearest}? See" if nearest else "; see"
        return f"{prog} has no option {unknown}{hint} {prog} --help"
    if text.startswith("Required options"):
        missing = " and ".join(re.findall(r"(--[a-z][\w.-]* (?:[A-Z]+|\{[^}]+\}))", text))
        return f"{prog} needs {missing}; see {prog} --help"
    if match := re.search(r"Missing value for argument '(--[\w.-]+)", text):
        flag = match[1]
        return f"{flag} needs a value; write one that begins with two dashes as {flag}=VALUE; see {prog} --help"
    if match := re.search(r"invalid choice '(.*?)' for argument '(--[\w.-]+)'\. Expected one of \((.+?)\)", text):
        value, flag, choices = match[1], match[2], re.findall(r"'([^']+)'", match[3])
        return f"{flag} is one of {', '.join(choices)}; got {value!r}{suggestion(value, choices)}"
    for parsed, rule in (
        ("invalid literal for int.. with base 10", "an integer"),
        ("could not convert .*float", "a number"),
    ):
        if match := re.search(rf"Error parsing (--[\w.-]+): {parsed}: ('.*?')", text):
            return f"{match[1]} is {rule}; got {match[2]}"
    if match := re.search(rf"Error parsing (--[\w.-]+): {NO_VALUES}", text):
        return f"{match[1]} is one value or more; got none: give one, or leave {match[1]} out"
    if match := re.search(r"Error parsing (--[\w.-]+): Could not find valid parse for arguments: \[(.*?)\]", text):
        return f"{match[1]} does not take the values {match[2]}; see {prog} --help"
    text = re.sub(r"^(Value error|Invalid choice|Required options|Parsing error|Missing value)\s+", "", text)
    text = re.sub(r"^Error parsing config[\w.]*: ", "", text)  # settings refuse a value in their own words
    text = text.split(" Argument helptext:")[0].rstrip(".")
    return f"{text}; see {prog} --help"


def run(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit with status 0, 2 (usage error), 1 (failure) or 130 (interrupted).

    If the status is not 0, one line on standard error gives the reason. It is a failure if standard output cannot be
    written because the pipe is closed or the disk is full; output to standard error that cannot be written is dropped.
    If ``torchrun`` started several processes, only the main process writes results; failures of other processes are
    reported too.
    """
    _keep_freed_memory()
    with standard_streams():
        end = _run(command)
        if (error := flush_error(sys.stdout)) and not end.status:
            end = End(1, _reason(error))
        _report(end)
    sys.exit(end.status)


class End(NamedTuple):
    """The end of a command.

    Attributes:
        status: exit status.
        reason: the reason for a status other than 0.
        is_everywhere: whether all processes end for the same reason, so that only rank 0 reports it.
    """

    status: int
    reason: str = ""
    is_everywhere: bool = False


def _run(command: Callable[[], None]) -> End:
    """Run a command; exceptions become its end."""
    try:
        with _process_group() as is_main, contextlib.nullcontext() if is_main else _silenced():
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
        # These three are caused by the path of a flag.
        is_misuse = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)
        return End(2 if is_misuse else 1, _reason(error), is_everywhere=is_misuse)
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            cause = str(error).strip().split("\n")[0]
            return End(
                1, f"torch.compile failed ({cause}): install a C++ compiler, set CXX to one, or leave compile out"
            )
        return End(1, unexpected(error))
    return End(0)


def _reason(error: OSError) -> str:
    if isinstance(error, BrokenPipeError):
        return "standard output was closed before all of it was written"
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason


@contextlib.contextmanager
def _process_group() -> Iterator[bool]:
    """Context of the process group of ``torchrun``; yields whether this is the main process.

    A single process needs no group, and torch is not imported for it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from didi.process_group import init_process_group

    with init_process_group() as group:
        yield group.is_main


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Discard standard output and standard error within the context."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        yield


def _report(end: End) -> None:
    """Print the reason of an end on standard error; a reason that all processes share is printed by rank 0 only."""
    rank = os.environ.get("RANK", "0")
    if end.reason and (rank == "0" or not end.is_everywhere):
        sender = "didi" if rank == "0" else f"didi, process {rank}"
        print(f"{sender}: {' '.join(end.reason.split())}", file=sys.stderr)


def _keep_freed_memory() -> None:
    """Keep glibc from returning large freed blocks to the system: page faults take longer than the arithmetic."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)
