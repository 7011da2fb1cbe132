"""Standard output and standard error of a command, for encodings that lack characters, closed pipes and full disks.

``didi --help`` imports this module, so it imports only the standard library.
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
    """Standard error of a command; output that cannot be written is dropped, so that it does not end the command.

    Args:
        stream: the wrapped stream; attributes other than ``write``, ``writelines`` and ``flush`` are forwarded.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if possible; returns its number of characters."""
        with self._lossy():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the buffer if possible."""
        with self._lossy():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _lossy(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # the pipe is closed or the disk is full
            discard(self._stream)


def outlive_log() -> None:
    """Replace standard error of this process by a ``LogStream``."""
    sys.stderr = cast(Any, LogStream(sys.stderr))


def discard(stream: Any) -> None:
    """Redirect ``stream``, with its buffered output, to the null device, so that closing it cannot fail."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor, or a closed one
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def flush_error(stream: Any) -> OSError | None:
    """Flush ``stream``; returns the error if that fails, after discarding the stream."""
    try:
        stream.flush()
    except OSError as error:
        discard(stream)  # otherwise the interpreter fails when it flushes the stream at exit
        return error
    return None


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Prepare the standard streams for a command, and restore them at the end.

    A character that the encoding of a stream lacks is replaced instead of raising an error. Standard error is a
    ``LogStream``. A stream that was closed before the start is opened on the null device: output to standard error is
    dropped, and writing to standard output raises ``OSError``.
    """
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Opened read-only, so that writes fail as they do for a closed descriptor.
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
    """A record as one line of JSON for standard output, with ASCII escapes if its encoding is not UTF-8.

    Raises:
        ValueError: a number is not finite, so JSON cannot represent it.
    """
    is_unicode = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name == "utf-8"
    line = json.dumps(record, ensure_ascii=not is_unicode, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(record, allow_nan=False)
    return line
