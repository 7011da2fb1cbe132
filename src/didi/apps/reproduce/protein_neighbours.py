"""Diversity and novelty of the sets of ``didi reproduce --scale proteins``, by one search for all sets."""

from collections.abc import Sequence
from functools import partial
from sys import stderr
from typing import Any

from didi.apps.reproduce.protein_cells import ControlCell, SampleCell
from didi.apps.reproduce.protein_measure import clear_caches, read_proteins, with_row, write_record
from didi.apps.reproduce.protein_study import ProteinStudy
from didi.data import mmseqs
from didi.evaluation.protein.measures import nearest_identities_of_sets

Cell = SampleCell | ControlCell


def add_neighbours(cells: Sequence[Cell], study: ProteinStudy) -> None:
    """Add diversity and the identities with training proteins to the cells that lack them, if mmseqs2 is there.

    The training proteins are searched once for all cells: most of the time of a search does not depend on its queries.

    Args:
        cells: cells that are sampled and judged.
        study: holds them.

    Raises:
        DidiError: mmseqs2 fails.
    """
    missing = [cell for cell in dict.fromkeys(cells) if _is_incomplete(study.record(cell))]
    if not missing or not mmseqs.is_available():
        return
    sets = [study.record(cell)["sequences"] for cell in missing]
    print(f"searching the training proteins for {sum(map(len, sets))} sequences", file=stderr, flush=True)
    try:
        identities = nearest_identities_of_sets(sets, read_proteins(study.training_file))
    finally:
        clear_caches()
    study.run(
        partial(_add, study=study),
        [(cell, of_set.tolist()) for cell, of_set in zip(missing, identities, strict=True)],
    )


def _is_incomplete(record: dict[str, Any]) -> bool:
    """Whether novelty was not measured, or an earlier version wrote the row, which measured diversity differently."""
    return record["identities"] is None or "pair_distance" not in record["row"]


def _add(item: tuple[Cell, list[float]], study: ProteinStudy) -> str:
    """Write a cell with its identities and its diversity; returns its name."""
    cell, identities = item
    write_record(cell, with_row(cell, study.record(cell), identities), study)
    return cell.name(study.digest)
