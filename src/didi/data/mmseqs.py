"""Clusters and nearest neighbours of proteins, by the program MMseqs2 (Steinegger and Söding 2017).

The program is searched on PATH; Debian has it as the package mmseqs2.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from didi.data.fasta import fasta_record
from didi.errors import DidiError

PROGRAM = "mmseqs"


def is_available() -> bool:
    """Whether the program is on PATH."""
    return shutil.which(PROGRAM) is not None


def clusters_of(
    sequences: Sequence[str], *, identity: float = 0.5, coverage: float = 0.8, masks_repeats: bool = True
) -> list[int]:
    """For each sequence, the number of the sequence that represents its cluster.

    Args:
        sequences: residues.
        identity: smallest identity of a member with its representative, in [0, 1].
        coverage: smallest share of both sequences that the alignment covers, in [0, 1].
        masks_repeats: whether regions of low complexity are left out when similar sequences are searched; the program
            fails if they are the whole of all sequences.

    Raises:
        DidiError: the program is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="didi-mmseqs-") as path:
        folder = Path(path)
        _write(sequences, folder / "all.fasta")
        settings = ["--min-seq-id", str(identity), "-c", str(coverage), "--cov-mode", "0"]
        settings += ["--mask", str(int(masks_repeats))]
        _run("easy-cluster", folder / "all.fasta", folder / "out", folder / "tmp", *settings)
        rows = (folder / "out_cluster.tsv").read_text("utf-8").splitlines()
    representatives = {int(member): int(representative) for representative, member in (row.split("\t") for row in rows)}
    if set(representatives) != set(range(len(sequences))):
        raise DidiError(
            f"{PROGRAM} puts each sequence into one cluster; its output has {len(representatives)} of {len(sequences)}"
        )
    return [representatives[number] for number in range(len(sequences))]


def nearest_identities(queries: Sequence[str], targets: Sequence[str], *, sensitivity: float = 5.7) -> list[float]:
    """For each query, the largest identity of a local alignment with a target, in [0, 1]; 0 if there is none.

    Identity is measured over the alignment, which covers at least half of the query.

    Args:
        queries: residues.
        targets: residues that the queries are compared with.
        sensitivity: sensitivity of the search; 1 is fast, 7.5 finds the most distant relatives.

    Raises:
        DidiError: the program is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="didi-mmseqs-") as path:
        folder = Path(path)
        _write(queries, folder / "queries.fasta")
        _write(targets, folder / "targets.fasta")
        files = [folder / name for name in ("queries.fasta", "targets.fasta", "out.tsv", "tmp")]
        settings = ["-s", str(sensitivity), "-c", "0.5", "--cov-mode", "2", "--alignment-mode", "3"]
        _run("easy-search", *files, *settings, "--format-output", "query,fident")
        rows = [row.split("\t") for row in (folder / "out.tsv").read_text("utf-8").splitlines()]
    best = [0.0] * len(queries)
    for number, identity in rows:
        best[int(number)] = max(best[int(number)], float(identity))
    return best


def _write(sequences: Sequence[str], file: Path) -> None:
    with file.open("w", encoding="ascii") as stream:
        stream.writelines(fasta_record(str(number), residues) for number, residues in enumerate(sequences))


def _run(*words: str | Path) -> None:
    if not is_available():
        raise DidiError(
            f"clusters and identities of proteins need the program {PROGRAM}, which is not on PATH: install it, on "
            "Debian by apt-get install mmseqs2"
        )
    command = [PROGRAM, *map(str, words), "-v", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        raise DidiError(f"{PROGRAM} {words[0]} failed with status {done.returncode}: {reason}")
