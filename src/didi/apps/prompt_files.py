"""Prompts from files and standard input."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from didi.errors import UsageError, suggestion
from didi.sampling.prompts import Prompt

STANDARD_INPUT = "-"
FIELDS = {"prefix": str, "infill": str, "seed": int}
"""Fields of a line of JSON, and their types."""


def text_or_input(text: str | None, flag: str) -> str | None:
    """``text``, or all of standard input without its last line end if it is ``-``.

    Args:
        text: the value of the flag.
        flag: its name, for error messages.

    Raises:
        UsageError: standard input is closed, cannot be read or is not UTF-8.
    """
    if text != STANDARD_INPUT:
        return text
    said = _read(STANDARD_INPUT, flag)
    return said[: -2 if said.endswith("\r\n") else -1] if said.endswith("\n") else said


def read_prompts(name: str) -> list[Prompt]:
    """Prompts of a file, one a line; blank lines are skipped.

    Args:
        name: the file, or ``-`` for standard input. If its first line begins with ``{``, each line is a JSON object
            with ``prefix`` or ``infill`` and perhaps ``seed``. Otherwise each line is a text, an infill text if it has
            a [MASK] and a prefix if not.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, has no prompt or a line that is none.
    """
    shown = _shown(name)
    lines = [(number, line) for number, line in enumerate(_lines(_read(name, "--prompts")), start=1) if line.strip()]
    if not lines:
        raise UsageError(f"--prompts names a file of prompts, one a line; {shown} has none")
    if not lines[0][1].lstrip().startswith("{"):
        return [Prompt.from_text(line) for _, line in lines]
    return [_prompt(line, f"{shown}, line {number}") for number, line in lines]


def _shown(name: str) -> str:
    return "standard input" if name == STANDARD_INPUT else name


def _read(name: str, flag: str) -> str:
    """The text of a file or of standard input, which ``flag`` names."""
    if name == STANDARD_INPUT and sys.stdin is None:  # closed before the start
        raise UsageError(f"{flag} {name} reads standard input, which is closed: redirect it from a file or a pipe")
    try:
        content = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{flag} reads a file or standard input; {_shown(name)} cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the text of {flag} is UTF-8; byte {error.start} of {_shown(name)} is not: convert it"
        ) from error


def _lines(text: str) -> Iterator[str]:
    """Lines that end in LF or CRLF; other separators, such as U+2028, belong to a prompt."""
    return (line.removesuffix("\r") for line in text.split("\n"))


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _prompt(line: str, where: str) -> Prompt:
    record = _json_object(line)
    if record is None:
        raise UsageError(
            f"{where}: if the first line begins with {{, each line is a JSON object; got {line[:60]!r}: correct it, or "
            'write a text as {"prefix": TEXT}'
        )
    for name, value in record.items():
        if name not in FIELDS:
            raise UsageError(f"{where}: fields are {', '.join(FIELDS)}; got {name!r}{suggestion(name, FIELDS)}")
        if type(value) is not FIELDS[name]:
            raise UsageError(f"{where}: {name} is of type {FIELDS[name].__name__}; got {value!r}")
    if ("prefix" in record) == ("infill" in record):
        raise UsageError(f"{where}: a prompt has a prefix or an infill text; got {_named(list(record))}")
    return Prompt(**record)


def _named(names: Sequence[str]) -> str:
    return " and ".join(names) or "neither"
