"""Standard output and standard error of a command: encodings that lack a character, readers that leave, full disks.

``didi --help`` imports this module, so it imports the standard library only.
"""

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast


class LogStream:
    """Standard error of a command. A log that can no longer be written is dropped, so it never ends the command.

    Args:
        stream: the stream that is written to; everything but ``write``, ``writelines`` and ``flush`` is its own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if that is possible; the number of its characters."""
        with self._lossy():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered if that is possible."""
        with self._lossy():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _lossy(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # its reader has left, or the disk that holds it is full
            discard(self._stream)


def outlive_log() -> None:
    """Make standard error of this process a ``LogStream``, for a process that runs no command of its own."""
    sys.stderr = cast(Any, LogStream(sys.stderr))


def discard(stream: Any) -> None:
    """Send what ``stream`` still holds, and all that follows, to nowhere; closing it then cannot fail."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor, or a closed one
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def unwritten(stream: Any) -> OSError | None:
    """Write what ``stream`` still holds; the reason where that fails, after which it is discarded."""
    try:
        stream.flush()
    except OSError as error:
        discard(stream)  # or the interpreter would fail at its exit
        return error
    return None


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Standard streams for the time of a command.

    A character that the encoding of a stream lacks is replaced instead of raising an error. Standard error is a
    ``LogStream``. A stream that was closed before the start exists: writing to standard output is an ``OSError`` then,
    and standard error is dropped.
    """
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Read-only, so that the first write that reaches it fails as one to a closed descriptor does.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
    outlive_log()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON for standard output, with escapes where its encoding is not UTF-8.

    Raises:
        ValueError: a number is not finite, which JSON has no word for.
    """
    is_unicode = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name == "utf-8"
    line = json.dumps(record, ensure_ascii=not is_unicode, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(record, allow_nan=False)
    return line
