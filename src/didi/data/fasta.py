"""FASTA files, plain or compressed with gzip."""

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from didi.errors import UsageError

LINE = 60
"""Number of residues per line in written records."""
GZIP_SIGNATURE = b"\x1f\x8b"


class Protein(NamedTuple):
    """A sequence and its title.

    Attributes:
        title: text after ``>``; its first word is the identifier.
        residues: upper-case letters.
    """

    title: str
    residues: str


def fasta_record(title: str, residues: str) -> str:
    """One record as text, with line ends."""
    lines = [residues[begin : begin + LINE] for begin in range(0, len(residues), LINE)]
    return "\n".join([f">{title}", *lines, ""])


def read_fasta(path: Path) -> Iterator[Protein]:
    """The records of a FASTA file; a stop (``*``) at the end of a sequence is dropped, letters become upper case.

    Args:
        path: the file; gzip is recognised by its signature.

    Raises:
        UsageError: the file cannot be read, or is not a FASTA file.
    """
    try:
        with path.open("rb") as stream:
            is_compressed = stream.read(len(GZIP_SIGNATURE)) == GZIP_SIGNATURE
        with gzip.open(path, "rt", encoding="utf-8") if is_compressed else path.open(encoding="utf-8") as text:
            yield from fasta_records(text, str(path))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error  # its text would repeat the path
        raise UsageError(
            f"a FASTA file is text, or text compressed with gzip; {path} is not readable: {reason}"
        ) from error


def fasta_records(text: Iterable[str], source: str) -> Iterator[Protein]:
    """The records of the lines of a FASTA file; see ``read_fasta``.

    Args:
        text: lines, such as an open file.
        source: name of the file, for error messages.

    Raises:
        UsageError: the lines are not those of a FASTA file.
    """
    title: str | None = None
    lines: list[str] = []
    for number, line in enumerate(text, start=1):
        line = line.strip()
        if line.startswith(">"):
            if title is not None:
                yield _protein(title, lines, source)
            title, lines = line[1:].strip(), []
        elif line and title is None:
            raise UsageError(f"a FASTA file begins with a title line, > and a name; line {number} of {source} is none")
        else:
            lines.append(line)
    if title is None:
        raise UsageError(f"a FASTA file holds one record or more; {source} holds none")
    yield _protein(title, lines, source)


def _protein(title: str, lines: list[str], source: str) -> Protein:
    residues = "".join("".join(lines).split()).upper().removesuffix("*")
    if not residues.isalpha() or not residues.isascii():
        raise UsageError(f"a FASTA record holds letters; {title[:60]!r} in {source} holds {residues[:60]!r}")
    return Protein(title, residues)
