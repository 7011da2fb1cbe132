"""Antibody heavy chains: variable domains from tables of the AIRR standard, and their clones.

A clone is the offspring of one B cell; its chains have the same genes and differ by a few mutations. Chains of
different clones share most of their residues too, if they come from the same V gene. Clusters of similar sequences
therefore do not separate antibodies, and clones are the units of their splits.
"""

import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

JUNCTION_IDENTITY = 0.8
"""Smallest identity of the junctions of two chains of a clone."""
FRAMEWORK_1 = 26
"""Last position of the first framework region in the IMGT numbering."""
CODONS = {
    first + second + third: residue
    for (first, second, third), residue in zip(
        ((a, b, c) for a in "TCAG" for b in "TCAG" for c in "TCAG"),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
}
"""The standard genetic code."""


@dataclass(frozen=True)
class HeavyChain:
    """The variable domain of a heavy chain.

    Attributes:
        residues: the domain.
        v_genes: possible V genes, without alleles.
        junction: residues from the conserved cysteine to the conserved tryptophan, CDR3 between them.
    """

    residues: str
    v_genes: frozenset[str]
    junction: str


def read_airr(file: Path) -> list[HeavyChain]:
    """Distinct variable domains of the productive rearrangements of a gzipped AIRR table.

    Domains that are out of frame (``in_frame``) or begin after the first framework region, that have a stop or an
    unknown nucleotide, or whose residues lack the junction of their row are left out.
    """
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["productive"] in ("T", "TRUE", "true")]
    chains: dict[str, HeavyChain] = {}
    for row in rows:
        residues, junction = translated(in_frame(row["sequence_alignment"])), row["junction_aa"]
        genes = frozenset(call.strip().partition("*")[0] for call in row["v_call"].split(","))
        if residues.isalpha() and junction in residues:
            chains.setdefault(residues, HeavyChain(residues, genes, junction))
    return list(chains.values())


def in_frame(alignment: str) -> str:
    """Nucleotides of whole codons from an alignment in the IMGT numbering of V genes.

    Args:
        alignment: three characters for each position of the numbering. Both ``.``, which fills a position that the
            gene lacks, and ``-``, a deletion, are gaps.

    Returns:
        Upper-case nucleotides from the first complete codon on. Empty if a deletion is not of whole codons, since the
        residues behind it are in another frame, or if the sequence begins after the first framework region.
    """
    start = len(alignment) - len(alignment.lstrip(".-"))
    gene = alignment[start + -start % 3 :].replace(".", "").upper()
    if start >= 3 * FRAMEWORK_1 or any(len(deletion) % 3 for deletion in re.findall("-+", gene)):
        return ""
    return gene.replace("-", "")


def translated(gene: str) -> str:
    """Residues of the complete codons; ``*`` for stops and invalid codons."""
    return "".join(CODONS.get(gene[at : at + 3], "*") for at in range(0, len(gene) // 3 * 3, 3))


def clones_of(chains: Sequence[HeavyChain]) -> list[int]:
    """For each chain, the number of the first chain of its clone.

    Two chains are related if they may have the same V gene, and their junctions have the same length and at least
    ``JUNCTION_IDENTITY`` equal residues. A clone is a connected component, so that no chain is related to one of
    another clone.
    """
    first = list(range(len(chains)))  # a chain of the same clone with a smaller number, or itself

    def find(number: int) -> int:
        while first[number] != number:
            number = first[number]
        return number

    by_length: dict[int, list[int]] = defaultdict(list)
    for number, chain in enumerate(chains):
        others = by_length[len(chain.junction)]
        for other in others:
            if _are_related(chain, chains[other]):
                low, high = sorted((find(number), find(other)))
                first[high] = low
        others.append(number)
    return [find(number) for number in range(len(chains))]


def _are_related(chain: HeavyChain, other: HeavyChain) -> bool:
    num_equal = sum(a == b for a, b in zip(chain.junction, other.junction, strict=True))
    return bool(chain.v_genes & other.v_genes) and num_equal >= JUNCTION_IDENTITY * len(chain.junction)
