"""FASTA files, plain and compressed, and files that are refused."""

import gzip

import pytest

from didi.data.fasta import Protein, fasta_record, read_fasta
from didi.errors import UsageError

TEXT = ">one first protein\nMKT\nay*\n\n>two\n  ACD \n"
RECORDS = [Protein("one first protein", "MKTAY"), Protein("two", "ACD")]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_file_is_read_plain_or_compressed(tmp_path, is_compressed):
    file = tmp_path / "proteins.fasta"
    file.write_bytes(gzip.compress(TEXT.encode()) if is_compressed else TEXT.encode())
    assert list(read_fasta(file)) == RECORDS


def test_records_round_trip_in_lines_of_sixty(tmp_path):
    residues = "ACDEFGHIKLMNPQRSTVWY" * 7
    (tmp_path / "one.fasta").write_text(fasta_record("one", residues) + fasta_record("two", "M"))
    assert list(read_fasta(tmp_path / "one.fasta")) == [Protein("one", residues), Protein("two", "M")]
    assert max(map(len, fasta_record("one", residues).splitlines())) == 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MKT\n>one\nMKT\n", "begins with a title line"),
        (b"\n\n", "holds one record or more"),
        (b">one\nMK1T\n", "holds letters; 'one'"),
        (b">one\n>two\nMK\n", "holds letters; 'one'"),
        (b">one\n\xff\xfe\n", "is not readable"),
        # The content is in the name of the test: with the current time, the name would change in each run.
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], "is not readable"),
    ],
)
def test_invalid_fasta_files_are_refused(tmp_path, content, message):
    (tmp_path / "wrong.fasta").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        list(read_fasta(tmp_path / "wrong.fasta"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not readable"):
        list(read_fasta(tmp_path / "none.fasta"))
