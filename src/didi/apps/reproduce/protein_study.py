"""The study of ``didi reproduce --scale proteins``: sets of proteins, measured once in worker processes and kept."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from sys import stderr
from typing import Any

import torch

from didi.apps.reproduce.cells import BundleDigests
from didi.apps.reproduce.protein_cells import ControlCell, ExampleCell, ProteinCell, RecordedJudge, SampleCell
from didi.apps.reproduce.workers import run_items
from didi.data import mmseqs
from didi.data.fasta import fasta_record, read_fasta
from didi.data.protein import ProteinData
from didi.errors import DidiError, UsageError
from didi.evaluation.protein.comparison import ScoredSet
from didi.evaluation.protein.controls import control_sets
from didi.evaluation.protein.judges import ProteinJudge, ResidueJudge, StructureJudge, load_protein_judge
from didi.evaluation.protein.measures import nearest_training_identities, residue_entropies, residue_frequencies
from didi.evaluation.protein.row import ProteinRow, protein_row
from didi.files import json_text, write_atomically
from didi.models.bundle import Bundle, digest, load
from didi.process_group import default_device
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions

SETTINGS_FILE = "sampling.json"


@dataclass(frozen=True)
class ProteinSampling:
    """Settings of the samples and of the judge, equal for all cells of a study.

    Attributes:
        num_samples: sequences in a cell.
        judge: see ``judges.load_protein_judge``.
        seed: seed of the samples.
        batch_size: number of sequences in a network pass.
    """

    num_samples: int
    judge: str
    seed: int = 20_265
    batch_size: int = 32


@dataclass(frozen=True)
class ProteinStudy:
    """Cells in a folder.

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
        """Proteins from which novelty is measured."""
        return self.folder / "training.fasta"

    @property
    def held_out_file(self) -> Path:
        """Proteins of which controls are made."""
        return self.folder / "held-out.fasta"

    def begin(self, data: ProteinData) -> None:
        """Write the proteins and the settings of the study into its folder.

        Raises:
            UsageError: the folder holds a study of other proteins, samples or another judge.
        """
        training = "".join(fasta_record(f"{n}", one) for n, one in enumerate(one for c in data.train for one in c))
        held_out = "".join(fasta_record(f"{n}", one) for n, one in enumerate(data.test))
        asked = asdict(self.sampling) | {
            "judge": _judge_identity(self.sampling.judge),
            "proteins": sha256(f"{training}\n{held_out}".encode()).hexdigest(),
        }
        file = self.folder / SETTINGS_FILE
        if file.is_file():
            known = json.loads(file.read_text())
            if differing := [name for name in asked if known.get(name) != asked[name]]:
                raise UsageError(
                    f"{self.folder} holds cells of another {' and '.join(differing)} (see {file.name}): choose another "
                    "--out"
                )
        write_atomically(self.training_file, training)
        write_atomically(self.held_out_file, held_out)
        write_atomically(file, json.dumps(asked, indent=1) + "\n")

    def complete(self, cells: Sequence[ProteinCell]) -> None:
        """Measure the cells that are not there yet."""
        missing = [cell for cell in dict.fromkeys(cells) if not self.has(cell)]
        numbers = count(1)

        def on_result(name: str) -> None:
            print(f"{next(numbers)}/{len(missing)}  {name}", file=stderr, flush=True)

        if self.workers > 1 and missing:
            run_items(partial(measure, study=self), missing, self.workers, on_result)
            return
        try:
            for cell in missing:
                on_result(measure(cell, self))
        finally:
            forget()

    def file(self, cell: ProteinCell) -> Path:
        """Where a cell is kept."""
        return self.folder / "cells" / f"{cell.name(self.digest)}.json"

    def has(self, cell: ProteinCell) -> bool:
        """Whether a cell is measured, with all that the programs of this machine allow."""
        if not self.file(cell).is_file():
            return False
        return isinstance(cell, ExampleCell) or self.record(cell)["has_mmseqs"] or not mmseqs.is_available()

    def record(self, cell: ProteinCell) -> dict[str, Any]:
        """What is kept of a cell."""
        found: dict[str, Any] = json.loads(self.file(cell).read_text())
        return found

    def row(self, cell: SampleCell | ControlCell) -> ProteinRow:
        """The measures of a cell."""
        return ProteinRow.from_record(self.record(cell)["row"])

    def scored(self, cell: SampleCell) -> ScoredSet:
        """The values of the sequences of a cell."""
        record = self.record(cell)
        identities = record["identities"]
        return ScoredSet(
            torch.tensor(record["scores"], dtype=torch.float64),
            residue_entropies(record["sequences"]),
            None if identities is None else torch.tensor(identities, dtype=torch.float64),
        )


def nearest_in_length(proteins: Sequence[str], length: int, num: int) -> list[str]:
    """The ``num`` proteins whose lengths are nearest to ``length``, or all if there are fewer; ties in their order."""
    return sorted(proteins, key=lambda one: abs(len(one) - length))[:num]


# ---------------------------------------------------------------------------------------------------- in a worker --- #


def measure(cell: ProteinCell, study: ProteinStudy) -> str:
    """Sample, judge and measure a cell, and write it; returns its name."""
    torch.set_num_threads(1)
    record = _examples(cell, study) if isinstance(cell, ExampleCell) else _measured(cell, study)
    write_atomically(study.file(cell), json_text(record) + "\n")
    return cell.name(study.digest)


def _measured(cell: SampleCell | ControlCell, study: ProteinStudy) -> dict[str, Any]:
    """The record of samples or controls; recorded sequences and scores are used again."""
    record = study.record(cell) if study.file(cell).is_file() else _scored(cell, study)
    sequences, has_mmseqs = record["sequences"], mmseqs.is_available()
    identities = nearest_training_identities(sequences, _read(study.training_file)) if has_mmseqs else None
    name, sampler, nfe = (cell.role, cell.sampler, cell.nfe) if isinstance(cell, SampleCell) else (cell.control, "", 0)
    row = protein_row(
        name,
        sequences,
        sampler=sampler,
        nfe=nfe,
        judge=RecordedJudge.of([record]),
        identities=identities,
        has_diversity=has_mmseqs,
    )
    known = None if identities is None else identities.tolist()
    return record | {"row": row.record(), "identities": known, "has_mmseqs": has_mmseqs}


def _scored(cell: SampleCell | ControlCell, study: ProteinStudy) -> dict[str, Any]:
    """Sequences and their scores."""
    about: dict[str, Any] = {"cell": asdict(cell), "sampling": asdict(study.sampling)}
    if isinstance(cell, ControlCell):
        natural = nearest_in_length(_read(study.held_out_file), cell.length, study.sampling.num_samples)
        sequences = control_sets(natural, seed=cell.length)[cell.control]
    else:
        drawn = generate(
            _bundle(cell.bundle, study),
            num_samples=study.sampling.num_samples,
            nfe=cell.nfe,
            seed=study.sampling.seed,
            length=cell.length,
            options=SamplingOptions(sampler=cell.sampler, role=cell.role, batch_size=study.sampling.batch_size),
        )
        sequences = drawn.texts
        about |= {
            "nfe": drawn.nfe,
            "network_passes": float(drawn.network_passes.double().mean()),
            "discriminator_passes": float(drawn.discriminator_passes.double().mean()),
            "seconds": drawn.seconds,
        }
    judge = _study_judge(study)
    described = {"name": judge.name, "unit": judge.unit, "is_higher_better": judge.is_higher_better}
    scores = judge.score(sequences)
    if not bool(scores.isfinite().all()):
        raise DidiError(f"scores are finite; the judge {judge.name} gave one that is not: choose another judge")
    return about | {"judge": described, "sequences": sequences, "scores": scores.tolist()}


def _examples(cell: ExampleCell, study: ProteinStudy) -> dict[str, Any]:
    """Scores and positions of residues; None where the judge has none."""
    judge, sequences = _study_judge(study), list(cell.sequences)
    unit, scores, traces = None, None, None
    if isinstance(judge, ResidueJudge):
        frequencies = residue_frequencies(_read(study.training_file))
        unit, scores = judge.residue_unit, [one.tolist() for one in judge.residue_scores(sequences, frequencies)]
    if isinstance(judge, StructureJudge):
        traces = [one.tolist() for one in judge.alpha_carbons(sequences)]
    return {"sequences": sequences, "residue_unit": unit, "residue_scores": scores, "traces": traces}


def _bundle(name: str, study: ProteinStudy) -> Bundle:
    return _loaded(name, study.digest(name))


@lru_cache(maxsize=1)
def _loaded(name: str, expected: str) -> Bundle:
    """A bundle on the device of this process.

    Raises:
        DidiError: it has changed since the study began.
    """
    if digest(name) != expected:
        raise DidiError(f"bundle {name} has changed since this study began: start it again")
    return load(name).to(default_device())


def _study_judge(study: ProteinStudy) -> ProteinJudge:
    """The judge of the study.

    Raises:
        DidiError: the judge is a bundle folder that has changed since the study began.
    """
    recorded = json.loads((study.folder / SETTINGS_FILE).read_text())["judge"]
    return _judge(study.sampling.judge, recorded)


@lru_cache(maxsize=1)
def _judge(name: str, recorded: str) -> ProteinJudge:
    if _judge_identity(name) != recorded:
        raise DidiError(f"judge {name} has changed since this study began: choose another --out")
    return load_protein_judge(name, device=default_device())


def _judge_identity(name: str) -> str:
    """Name of a judge, or the digest of a bundle folder."""
    return digest(name) if Path(name).expanduser().is_dir() else name


@lru_cache(maxsize=2)
def _read(file: Path) -> list[str]:
    return [one.residues for one in read_fasta(file)]


CACHED: tuple[Callable[[], None], ...] = (_loaded.cache_clear, _judge.cache_clear, _read.cache_clear)


def forget() -> None:
    """Free the bundle, the judge and the proteins that this process holds."""
    for clear in CACHED:
        clear()
