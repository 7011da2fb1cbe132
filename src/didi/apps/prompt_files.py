"""Prompts from files and standard input."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from didi.errors import UsageError, suggestion
from didi.sampling.prompts import Prompt

STANDARD_INPUT = "-"
FIELDS = {"prefix": str, "infill": str, "seed": int, "length": int}
"""Fields of a line of JSON, and their types."""


def text_or_input(text: str | None, flag: str) -> str | None:
    """``text``; if it is ``-``, all of standard input without its last line break.

    Args:
        text: the value of the flag.
        flag: the name of the flag, for error messages.

    Raises:
        UsageError: standard input is closed, cannot be read or is not UTF-8.
    """
    if text != STANDARD_INPUT:
        return text
    content = read_text(STANDARD_INPUT, flag)
    return content[: -2 if content.endswith("\r\n") else -1] if content.endswith("\n") else content


def read_prompts(name: str) -> list[Prompt]:
    """Prompts of a file, one a line; blank lines are skipped.

    Args:
        name: the file, or ``-`` for standard input. If its first line begins with ``{``, each line is a JSON object
            with ``prefix`` or ``infill`` and optionally ``seed`` and ``length``. Otherwise each line is a text: an
            infill text if it contains [MASK], else a prefix.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, has no prompt, or has an invalid line.
    """
    source = _source(name)
    lines = [
        (number, line) for number, line in enumerate(_lines(read_text(name, "--prompts")), start=1) if line.strip()
    ]
    if not lines:
        raise UsageError(f"--prompts names a file of prompts, one a line; {source} has none")
    if not lines[0][1].lstrip().startswith("{"):
        return [Prompt.from_text(line) for _, line in lines]
    return [_prompt(line, f"{source}, line {number}") for number, line in lines]


def _source(name: str) -> str:
    """Name of a file or of standard input, for error messages."""
    return "standard input" if name == STANDARD_INPUT else name


def read_text(name: str, flag: str) -> str:
    """The text of a file or of standard input.

    Args:
        name: the file, or ``-`` for standard input.
        flag: the name of the flag, for error messages.

    Raises:
        UsageError: standard input is closed, or the text cannot be read or is not UTF-8.
    """
    if name == STANDARD_INPUT and sys.stdin is None:  # closed before the start
        raise UsageError(f"{flag} {name} reads standard input, which is closed: redirect it from a file or a pipe")
    try:
        content = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{flag} reads a file or standard input; {_source(name)} cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the text of {flag} is UTF-8; byte {error.start} of {_source(name)} is not: convert it"
        ) from error


def _lines(text: str) -> Iterator[str]:
    """Lines that end in LF or CRLF; other line separators, such as U+2028, are part of a prompt."""
    return (line.removesuffix("\r") for line in text.split("\n"))


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _prompt(line: str, where: str) -> Prompt:
    """The prompt of a line of JSON; ``where`` is the source and line number, for error messages."""
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
    try:
        return Prompt(**record)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _named(names: Sequence[str]) -> str:
    return " and ".join(names) or "neither"
