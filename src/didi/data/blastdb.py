"""Protein databases of BLAST, format 4: the index ``.pin`` and the sequences ``.psq``, read with numpy alone."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from didi.errors import UsageError

LETTERS = b"-ABCDEFGHIKLMNPQRSTVWXYZU*OJ"
"""The codes 0 to 27 of NCBIstdaa."""
FORMAT, PROTEIN = 4, 1


def read_blastdb(prefix: Path) -> Iterator[str]:
    """Residues of every sequence of a database, in its order.

    Args:
        prefix: path of its files without ``.pin`` and ``.psq``; other files are not read.

    Raises:
        UsageError: a file is missing or damaged, or no protein database of format 4.
    """
    index, sequences = (prefix.with_name(f"{prefix.name}.{ending}") for ending in ("pin", "psq"))
    try:
        offsets, num_residues = _read_index(index.read_bytes())
        codes = np.fromfile(sequences, dtype=np.uint8)
    except (OSError, struct.error, ValueError) as error:
        raise UsageError(f"a BLAST protein database of format {FORMAT} is {index} and {sequences}: {error}") from error
    # Each sequence is between two zeros; the one that ends it begins the next.
    lengths = np.diff(offsets) - 1
    is_whole = len(codes) > 0 and offsets[0] == 1 and offsets[-1] == len(codes) and bool((lengths >= 0).all())
    if not is_whole or lengths.sum() != num_residues or codes.max() >= len(LETTERS) or codes[offsets - 1].any():
        raise UsageError(
            f"{sequences} has {num_residues} residues by its index {index}, and holds another number: fetch it again"
        )
    letters = np.frombuffer(LETTERS, dtype=np.uint8)[codes].tobytes().decode("ascii")
    for begin, length in zip(offsets[:-1].tolist(), lengths.tolist(), strict=True):
        yield letters[begin : begin + length]


def _read_index(data: bytes) -> tuple[np.ndarray, int]:
    """Offsets of the sequences, one more than there are, and the number of residues.

    Raises:
        ValueError: it is another format.
        struct.error: it is cut off.
    """
    version, kind = struct.unpack_from(">ii", data)
    if (version, kind) != (FORMAT, PROTEIN):
        raise ValueError(f"format {version}, kind {kind}")
    place = 8
    for _ in range(2):  # title and date
        (length,) = struct.unpack_from(">i", data, place)
        place += 4 + length
    (num_sequences,) = struct.unpack_from(">i", data, place)
    (num_residues,) = struct.unpack_from("<q", data, place + 4)  # the one little-endian number
    place += 16 + 4 * (num_sequences + 1)  # the longest sequence, and the offsets of the headers
    return np.frombuffer(data, ">i4", num_sequences + 1, place).astype(np.int64), num_residues
