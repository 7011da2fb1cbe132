"""The study of ``didi reproduce --scale proteins``: settings, proteins and measured sets in a folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from sys import stderr
from typing import Any, TypeVar

import torch
from torch import Tensor

from didi.apps.reproduce.cells import BundleDigests
from didi.apps.reproduce.protein_cells import ControlCell, ProteinCell, SampleCell
from didi.apps.reproduce.workers import run_items
from didi.data.fasta import fasta_record
from didi.data.protein import ProteinData
from didi.errors import UsageError
from didi.evaluation.protein.comparison import ScoredSet
from didi.evaluation.protein.measures import pair_distances, residue_entropies
from didi.evaluation.protein.row import ProteinRow
from didi.files import write_atomically
from didi.models.bundle import digest
from didi.models.inference import Numerics

SETTINGS_FILE = "sampling.json"
Item = TypeVar("Item")


@dataclass(frozen=True)
class ProteinSampling:
    """Settings of the samples and of the judge, equal for all cells of a study.

    Attributes:
        num_samples: number of sequences in a cell.
        judge: name or bundle folder of the judge, see ``judges.load_protein_judge``.
        network: number format of the networks' trunks.
        seed: seed of the samples.
        batch_size: number of sequences in a network pass.
    """

    num_samples: int
    judge: str
    network: Numerics = "float32"
    seed: int = 20_265
    batch_size: int = 32


@dataclass(frozen=True)
class ProteinStudy:
    """Sets of proteins (cells) of one study, each a file in its folder.

    Attributes:
        folder: holds ``cells/``, ``training.fasta``, ``held-out.fasta`` and the report.
        sampling: settings of all cells.
        workers: number of processes, of one thread each; with 1, the work is done in this process.
        digests: digests of the bundles when the study began.
    """

    folder: Path
    sampling: ProteinSampling
    workers: int = 2
    digests: BundleDigests = field(default_factory=BundleDigests, compare=False)

    def digest(self, name: str) -> str:
        """``models.bundle.digest`` of a bundle, which is computed once."""
        return self.digests[name]

    @property
    def training_file(self) -> Path:
        """FASTA file of the training proteins, with which samples are compared for novelty."""
        return self.folder / "training.fasta"

    @property
    def held_out_file(self) -> Path:
        """FASTA file of the test proteins, of which controls are made."""
        return self.folder / "held-out.fasta"

    def begin(self, data: ProteinData) -> None:
        """Write the proteins and the settings of the study into its folder.

        Raises:
            UsageError: the folder holds a study of other proteins, samples or another judge.
        """
        training = "".join(fasta_record(f"{n}", protein) for n, protein in enumerate(chain.from_iterable(data.train)))
        held_out = "".join(fasta_record(f"{n}", protein) for n, protein in enumerate(data.test))
        asked = asdict(self.sampling) | {
            "judge": judge_identity(self.sampling.judge),
            "proteins": sha256(f"{training}\n{held_out}".encode()).hexdigest(),
        }
        file = self.folder / SETTINGS_FILE
        if file.is_file():
            # Earlier versions had no setting of the number format and sampled in float32.
            known = {"network": "float32"} | json.loads(file.read_text("utf-8"))
            if differing := [name for name in asked if known.get(name) != asked[name]]:
                raise UsageError(
                    f"{self.folder} holds cells of another {' and '.join(differing)} (see {file.name}): choose another "
                    "--out"
                )
        write_atomically(self.training_file, training)
        write_atomically(self.held_out_file, held_out)
        write_atomically(file, json.dumps(asked, indent=1) + "\n")

    def run(self, function: Callable[[Item], str], items: Sequence[Item]) -> None:
        """Call ``function`` with each item in the worker processes, and print the name that it returns."""
        numbers = count(1)

        def on_result(name: str) -> None:
            print(f"{next(numbers)}/{len(items)}  {name}", file=stderr, flush=True)

        if self.workers > 1 and items:
            run_items(function, items, self.workers, on_result)
            return
        for item in items:
            on_result(function(item))

    def file(self, cell: ProteinCell) -> Path:
        """File of a cell."""
        return self.folder / "cells" / f"{cell.name(self.digest)}.json"

    def has(self, cell: ProteinCell) -> bool:
        """Whether a cell is sampled and judged."""
        return self.file(cell).is_file()

    def record(self, cell: ProteinCell) -> dict[str, Any]:
        """Content of the file of a cell: sequences, scores, row and settings."""
        fields: dict[str, Any] = json.loads(self.file(cell).read_text("utf-8"))
        return fields

    def row(self, cell: SampleCell | ControlCell) -> ProteinRow:
        """The row of the report that describes a cell."""
        return ProteinRow.from_record(self.record(cell)["row"])

    def scored(self, cell: SampleCell) -> ScoredSet:
        """The values of each sequence of a cell."""
        record = self.record(cell)
        identities = record["identities"]
        return ScoredSet(
            torch.tensor(record["scores"], dtype=torch.float64),
            residue_entropies(record["sequences"]),
            _pair_distances(tuple(record["sequences"])),
            None if identities is None else torch.tensor(identities, dtype=torch.float64),
        )


@lru_cache(maxsize=256)  # a set takes seconds, and several comparisons of a report read it
def _pair_distances(sequences: tuple[str, ...]) -> Tensor:
    return pair_distances(sequences)


def judge_identity(name: str) -> str:
    """Name of a judge, or the digest of a bundle folder."""
    return digest(name) if Path(name).expanduser().is_dir() else name
