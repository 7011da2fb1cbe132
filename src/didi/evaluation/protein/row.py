"""Evaluation rows of protein sets: samples of a model, held-out proteins or controls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor

from didi.evaluation.frontier import NAN_INTERVAL, Interval, mean_interval
from didi.evaluation.protein.interface import ProteinJudge
from didi.evaluation.protein.measures import (
    cluster_diversity,
    corpus_residue_entropy,
    duplicate_share,
    nearest_training_identities,
    pair_distances,
    residue_entropies,
)


@dataclass(frozen=True)
class ProteinRow:
    """Measures of one set of proteins.

    Attributes:
        name: name of the set: a role of a bundle, or a control.
        sampler: name of the sampler; empty for proteins that were not sampled.
        nfe: number of moves; 0 for proteins that were not sampled.
        num_sequences: number of sequences; all are measured.
        shortest: length of the shortest sequence in residues.
        longest: length of the longest sequence in residues.
        residue_entropy: mean entropy of the residues within a sequence, nats.
        residue_entropy_ci: its 95% bootstrap interval over sequences.
        corpus_entropy: entropy of the residues of the whole set, nats.
        duplicates: share of the sequences that are equal to an earlier one.
        diversity: number of clusters at 50% identity divided by ``num_sequences``; NaN if it was not requested.
        pair_distance: mean distance of two sequences of the set (``measures.pair_distances``); NaN for a single one.
        pair_distance_ci: its 95% bootstrap interval.
        nearest_identity: mean identity with the nearest training protein; NaN without a training set.
        nearest_identity_ci: its 95% bootstrap interval.
        judge: name of the judge; empty without one.
        score: mean score.
        score_ci: its 95% bootstrap interval.
        network_passes: mean number of passes of the sampled network for a sequence; NaN if it is not known.
        discriminator_passes: mean number of discriminator passes for a sequence, backward passes included; NaN if it is
            not known.
    """

    name: str
    sampler: str
    nfe: int
    num_sequences: int
    shortest: int
    longest: int
    residue_entropy: float
    residue_entropy_ci: Interval
    corpus_entropy: float
    duplicates: float
    diversity: float = math.nan
    pair_distance: float = math.nan
    pair_distance_ci: Interval = NAN_INTERVAL
    nearest_identity: float = math.nan
    nearest_identity_ci: Interval = NAN_INTERVAL
    judge: str = ""
    score: float = math.nan
    score_ci: Interval = NAN_INTERVAL
    network_passes: float = math.nan
    discriminator_passes: float = math.nan

    def record(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ProteinRow":
        """The row of a ``record`` that was written as JSON, in which NaN is null and an interval is a list.

        Optional fields that the record of an earlier version lacks have their defaults.
        """

        def value(name: str) -> Any:
            recorded = record[name]
            if name.endswith("_ci"):
                return tuple(math.nan if value is None else value for value in recorded)
            return math.nan if recorded is None else recorded

        return cls(**{field.name: value(field.name) for field in fields(cls) if field.name in record})


def protein_row(
    name: str,
    sequences: Sequence[str],
    *,
    sampler: str = "",
    nfe: int = 0,
    network_passes: float = math.nan,
    discriminator_passes: float = math.nan,
    judge: ProteinJudge | None = None,
    training: Sequence[str] | None = None,
    identities: Float[Tensor, " n"] | None = None,
    has_diversity: bool = False,
) -> ProteinRow:
    """Measure a set of proteins.

    Args:
        name: name of the set.
        sequences: residues of each protein.
        sampler: name of the sampler.
        nfe: number of moves.
        network_passes: see ``ProteinRow``.
        discriminator_passes: see ``ProteinRow``.
        judge: a judge that orders the controls (``judges.check_judge``).
        training: training proteins, for the nearest identities; needs mmseqs2.
        identities: nearest identities, if ``nearest_training_identities`` has already computed them; ``training`` is
            not read then.
        has_diversity: whether to compute ``diversity``; needs mmseqs2.

    Raises:
        UsageError: there is no sequence, or one is empty.
        DidiError: mmseqs2 is missing or fails.
    """
    entropies, lengths = residue_entropies(sequences), [len(residues) for residues in sequences]
    if identities is None and training is not None:
        identities = nearest_training_identities(sequences, training)
    scores = None if judge is None else judge.score(sequences)
    distances = pair_distances(sequences)
    return ProteinRow(
        name=name,
        sampler=sampler,
        nfe=nfe,
        num_sequences=len(sequences),
        shortest=min(lengths),
        longest=max(lengths),
        residue_entropy=float(entropies.mean()),
        residue_entropy_ci=mean_interval(entropies),
        corpus_entropy=corpus_residue_entropy(sequences),
        duplicates=duplicate_share(sequences),
        diversity=cluster_diversity(sequences) if has_diversity else math.nan,
        pair_distance=float(distances.mean()),
        pair_distance_ci=mean_interval(distances),
        nearest_identity=math.nan if identities is None else float(identities.mean()),
        nearest_identity_ci=NAN_INTERVAL if identities is None else mean_interval(identities),
        judge="" if judge is None else judge.name,
        score=math.nan if scores is None else float(scores.mean()),
        score_ci=NAN_INTERVAL if scores is None else mean_interval(scores),
        network_passes=network_passes,
        discriminator_passes=discriminator_passes,
    )
