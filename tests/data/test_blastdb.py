"""Reading of BLAST protein databases, which the tests write byte by byte."""

import struct

import pytest

from didi.data.blastdb import LETTERS, read_blastdb
from didi.errors import UsageError

SEQUENCES = ["MKTAY", "ACDXU", "W"]


def index_bytes(sequences, *, version=4, kind=1, total=None):
    title, date = b"a title", b"Jan 1, 2014"
    num = sum(map(len, sequences)) if total is None else total
    data = struct.pack(">ii", version, kind)
    for text in (title, date):
        data += struct.pack(">i", len(text)) + text
    data += struct.pack(">i", len(sequences)) + struct.pack("<q", num) + struct.pack(">i", max(map(len, sequences)))
    offsets, position = [1], 1
    for residues in sequences:
        position += len(residues) + 1
        offsets.append(position)
    headers = range(len(sequences) + 1)
    return data + struct.pack(f">{len(offsets)}i", *headers) + struct.pack(f">{len(offsets)}i", *offsets)


def sequence_bytes(sequences):
    return b"\0" + b"".join(bytes(LETTERS.index(letter.encode()) for letter in text) + b"\0" for text in sequences)


@pytest.fixture
def database(tmp_path):
    (tmp_path / "goasp.fasta.pin").write_bytes(index_bytes(SEQUENCES))
    (tmp_path / "goasp.fasta.psq").write_bytes(sequence_bytes(SEQUENCES))
    return tmp_path / "goasp.fasta"


def test_every_sequence_is_read(database):
    assert list(read_blastdb(database)) == SEQUENCES


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("pin", index_bytes(SEQUENCES, version=5)),
        ("pin", index_bytes(SEQUENCES, kind=0)),
        ("pin", index_bytes(SEQUENCES)[:-3]),
        ("pin", b"\0\0"),
        ("pin", index_bytes(SEQUENCES, total=12)),
        ("psq", sequence_bytes(SEQUENCES)[:-2]),
        ("psq", sequence_bytes(SEQUENCES).replace(b"\0", b"\1")),
        ("psq", sequence_bytes(SEQUENCES)[:-2] + b"\x63\0"),
        ("psq", b""),
    ],
)
def test_a_damaged_database_is_refused(database, ending, content):
    database.with_name(f"goasp.fasta.{ending}").write_bytes(content)
    with pytest.raises(UsageError, match=r"goasp\.fasta"):
        list(read_blastdb(database))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a BLAST protein database of format 4 is"):
        list(read_blastdb(tmp_path / "none"))
