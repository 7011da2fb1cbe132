"""A reader of BLAST protein databases, format 4: the index ``.pin`` and the sequences ``.psq``."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from didi.errors import UsageError

LETTERS = b"-ABCDEFGHIKLMNPQRSTVWXYZU*OJ"
"""The codes 0 to 27 of NCBIstdaa."""
FORMAT, PROTEIN = 4, 1


def read_blastdb(prefix: Path) -> Iterator[str]:
    """Residues of every sequence of a database, in the order of the database.

    Args:
        prefix: path of its files without ``.pin`` and ``.psq``; other files are not read.

    Raises:
        UsageError: a file is missing or damaged, or is not a protein database of format 4.
    """
    index, sequences = (prefix.with_name(f"{prefix.name}.{ending}") for ending in ("pin", "psq"))
    try:
        offsets, num_residues = _read_index(index.read_bytes())
        codes = np.fromfile(sequences, dtype=np.uint8)
    except (OSError, struct.error, ValueError) as error:
        raise UsageError(f"a BLAST protein database of format {FORMAT} is {index} and {sequences}: {error}") from error
    # A zero stands before, between and after the sequences.
    lengths = np.diff(offsets) - 1
    is_whole = len(codes) > 0 and offsets[0] == 1 and offsets[-1] == len(codes) and bool((lengths >= 0).all())
    if not is_whole or lengths.sum() != num_residues or codes.max() >= len(LETTERS) or codes[offsets - 1].any():
        raise UsageError(
            f"{sequences} does not match its index {index} ({len(lengths)} proteins, {num_residues} residues), or has "
            "unknown letters: fetch it again"
        )
    letters = np.frombuffer(LETTERS, dtype=np.uint8)[codes].tobytes().decode("ascii")
    for begin, length in zip(offsets[:-1].tolist(), lengths.tolist(), strict=True):
        yield letters[begin : begin + length]


def _read_index(data: bytes) -> tuple[np.ndarray, int]:
    """Offsets of the sequences, with an additional end offset, and the number of residues.

    Raises:
        ValueError: the index has another format.
        struct.error: the index is truncated.
    """
    version, kind = struct.unpack_from(">ii", data)
    if (version, kind) != (FORMAT, PROTEIN):
        raise ValueError(f"format {version}, kind {kind}")
    position = 8
    for _ in range(2):  # title and date
        (length,) = struct.unpack_from(">i", data, position)
        position += 4 + length
    (num_sequences,) = struct.unpack_from(">i", data, position)
    (num_residues,) = struct.unpack_from("<q", data, position + 4)  # the only little-endian number
    position += 16 + 4 * (num_sequences + 1)  # skips the length of the longest sequence and the offsets of the headers
    return np.frombuffer(data, ">i4", num_sequences + 1, position).astype(np.int64), num_residues
