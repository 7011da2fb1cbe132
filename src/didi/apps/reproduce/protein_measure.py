"""Sets of ``didi reproduce --scale proteins``: each is sampled and judged once, in a worker process."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from didi.apps.reproduce.protein_cells import ControlCell, ExampleCell, ProteinCell, RecordedJudge, SampleCell
from didi.apps.reproduce.protein_study import SETTINGS_FILE, ProteinStudy, judge_identity
from didi.data.fasta import read_fasta
from didi.errors import DidiError
from didi.evaluation.protein.controls import control_sets
from didi.evaluation.protein.interface import ProteinJudge, ResidueJudge
from didi.evaluation.protein.judges import load_protein_judge
from didi.evaluation.protein.measures import residue_frequencies
from didi.evaluation.protein.row import protein_row
from didi.files import json_text, write_atomically
from didi.models.bundle import Bundle, digest, load
from didi.models.inference import Numerics, for_inference
from didi.process_group import default_device
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions


def complete(cells: Sequence[ProteinCell], study: ProteinStudy) -> None:
    """Sample and judge the cells that the study does not have yet."""
    try:
        study.run(partial(measure, study=study), [cell for cell in dict.fromkeys(cells) if not study.has(cell)])
    finally:
        clear_caches()


def nearest_in_length(proteins: Sequence[str], length: int, num: int) -> list[str]:
    """The ``num`` proteins whose lengths are nearest to ``length``, or all if there are fewer; ties in their order."""
    return sorted(proteins, key=lambda protein: abs(len(protein) - length))[:num]


# ---------------------------------------------------------------------------------------------------- in a worker --- #


def measure(cell: ProteinCell, study: ProteinStudy) -> str:
    """Sample and judge a cell, and write it; returns its name."""
    torch.set_num_threads(1)
    record = _examples(cell, study) if isinstance(cell, ExampleCell) else with_row(cell, _scored(cell, study))
    write_record(cell, record, study)
    return cell.name(study.digest)


def with_row(
    cell: SampleCell | ControlCell, record: Mapping[str, Any], identities: Sequence[float] | None = None
) -> dict[str, Any]:
    """The record of a cell with its ``ProteinRow``.

    Args:
        cell: the cell.
        record: its sequences and their scores.
        identities: of each sequence with its nearest training protein; with them diversity is measured too, which needs
            mmseqs2.
    """
    name, sampler, nfe = (cell.role, cell.sampler, cell.nfe) if isinstance(cell, SampleCell) else (cell.control, "", 0)
    row = protein_row(
        name,
        record["sequences"],
        sampler=sampler,
        nfe=nfe,
        network_passes=record.get("network_passes", math.nan),
        discriminator_passes=record.get("discriminator_passes", math.nan),
        judge=RecordedJudge.of([record]),
        identities=None if identities is None else torch.tensor(identities, dtype=torch.float64),
        has_diversity=identities is not None,
    )
    return {**record, "row": row.record(), "identities": identities}


def write_record(cell: ProteinCell, record: Mapping[str, Any], study: ProteinStudy) -> None:
    """Write the file of a cell."""
    write_atomically(study.file(cell), json_text(record) + "\n")


def _scored(cell: SampleCell | ControlCell, study: ProteinStudy) -> dict[str, Any]:
    """Sequences and their scores."""
    record: dict[str, Any] = {"cell": asdict(cell), "sampling": asdict(study.sampling)}
    if isinstance(cell, ControlCell):
        natural = nearest_in_length(read_proteins(study.held_out_file), cell.length, study.sampling.num_samples)
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
        record |= {
            "nfe": drawn.nfe,
            "network_passes": float(drawn.network_passes.double().mean()),
            "discriminator_passes": float(drawn.discriminator_passes.double().mean()),
            "seconds": drawn.seconds,
        }
    judge = _study_judge(study)
    described = {"name": judge.name, "unit": judge.unit, "is_higher_better": judge.is_higher_better}
    scores = _finite(judge.score(sequences), "scores", judge)
    return record | {"judge": described, "sequences": sequences, "scores": scores.tolist()}


def _examples(cell: ExampleCell, study: ProteinStudy) -> dict[str, Any]:
    """Scores and positions of residues; None where the judge has none."""
    judge, sequences = _study_judge(study), list(cell.sequences)
    record: dict[str, Any] = {"sequences": sequences, "residue_unit": None, "residue_scores": None, "traces": None}
    if not isinstance(judge, ResidueJudge):
        return record
    scored = judge.residues(sequences, residue_frequencies(read_proteins(study.training_file)))
    record |= {
        "residue_unit": judge.residue_unit,
        "residue_scores": [_finite(residue.scores, "scores of residues", judge).tolist() for residue in scored],
    }
    traces = [residue.alpha_carbons for residue in scored if residue.alpha_carbons is not None]
    if traces:
        record["traces"] = [_finite(trace, "positions of residues", judge).tolist() for trace in traces]
    return record


def _finite(values: Tensor, what: str, judge: ProteinJudge) -> Tensor:
    """``values``, if all are finite.

    Raises:
        DidiError: a value is NaN or infinite.
    """
    if not bool(values.isfinite().all()):
        raise DidiError(f"{what} are finite; the judge {judge.name} gave one that is not: choose another judge")
    return values


def _bundle(name: str, study: ProteinStudy) -> Bundle:
    return _loaded(name, study.digest(name), study.sampling.network)


@lru_cache(maxsize=1)
def _loaded(name: str, expected: str, numerics: Numerics) -> Bundle:
    """A bundle for sampling, on the device of this process.

    Raises:
        DidiError: it has changed since the study began.
    """
    if digest(name) != expected:
        raise DidiError(f"bundle {name} has changed since this study began: start it again")
    return for_inference(load(name).to(default_device()), numerics)


def _study_judge(study: ProteinStudy) -> ProteinJudge:
    """The judge of the study.

    Raises:
        DidiError: the judge is a bundle folder that has changed since the study began.
    """
    recorded = json.loads((study.folder / SETTINGS_FILE).read_text("utf-8"))["judge"]
    return _judge(study.sampling.judge, recorded)


@lru_cache(maxsize=1)
def _judge(name: str, recorded: str) -> ProteinJudge:
    if judge_identity(name) != recorded:
        raise DidiError(f"judge {name} has changed since this study began: choose another --out")
    return load_protein_judge(name, device=default_device())


@lru_cache(maxsize=2)
def read_proteins(file: Path) -> list[str]:
    """The proteins of a FASTA file; the last two files are kept in memory until ``clear_caches``."""
    return [record.residues for record in read_fasta(file)]


CACHE_CLEARS: tuple[Callable[[], None], ...] = (_loaded.cache_clear, _judge.cache_clear, read_proteins.cache_clear)


def clear_caches() -> None:
    """Free the bundle, the judge and the proteins that this process holds."""
    for clear in CACHE_CLEARS:
        clear()
