"""Few-step students against their teacher: scores, entropies, distances between samples, novelty."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.errors import UsageError
from didi.evaluation.frontier import NAN_INTERVAL, NUM_RESAMPLES, Interval, percentile_interval
from didi.evaluation.over_seeds import estimate

ENTROPY_TOLERANCE = 0.02
"""Largest relative difference of the residue entropies of students and teacher at which a higher score is a gain."""


@dataclass(frozen=True)
class ScoredSet:
    """Values of the sequences of one set.

    Attributes:
        scores: the judge's score of each sequence.
        entropies: entropy of the residues within each sequence, nats.
        distances: values whose mean is the mean distance of two sequences, see ``measures.pair_distances``.
        identities: identity with the nearest training protein in [0, 1]; None if it was not measured.
    """

    scores: Float[Tensor, " n"]
    entropies: Float[Tensor, " n"]
    distances: Float[Tensor, " n"]
    identities: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class SetComparison:
    """Students against a teacher; means give every set the same weight.

    Attributes:
        difference: mean score of the students minus that of the teacher.
        difference_ci: its 95% bootstrap interval; the sequences of each set are resampled independently.
        seeds_ci: its 95% t-interval over the students; NaN for a single student.
        entropy_ratio: mean residue entropy of the students over that of the teacher.
        entropy_ratio_ci: its 95% bootstrap interval.
        distance_ratio: mean distance of two sequences of a set, students over teacher.
        distance_ratio_ci: its 95% bootstrap interval.
        identity_difference: mean identity with the nearest training protein, students minus teacher; NaN where it was
            not measured.
        identity_difference_ci: its 95% bootstrap interval.
        is_higher_better: whether a larger score is better.
    """

    difference: float
    difference_ci: Interval
    seeds_ci: Interval
    entropy_ratio: float
    entropy_ratio_ci: Interval
    distance_ratio: float
    distance_ratio_ci: Interval
    identity_difference: float = math.nan
    identity_difference_ci: Interval = NAN_INTERVAL
    is_higher_better: bool = True

    @property
    def has_better_score(self) -> bool:
        """Whether the students score better than the teacher, beyond the bootstrap interval."""
        return self.difference_ci[0] > 0 if self.is_higher_better else self.difference_ci[1] < 0

    @property
    def keeps_entropy(self) -> bool:
        """Whether the ratio of entropies differs from 1 by at most ``ENTROPY_TOLERANCE``."""
        return abs(self.entropy_ratio - 1) <= ENTROPY_TOLERANCE

    @property
    def is_as_novel(self) -> bool | None:
        """False if the students are nearer to training proteins beyond the interval; None where not measured."""
        return None if math.isnan(self.identity_difference) else self.identity_difference_ci[0] <= 0

    @property
    def is_as_diverse(self) -> bool:
        """False if sequences of the students are nearer to each other than the teacher's, beyond the interval.

        True also if all sequences of the teacher are equal, where the ratio is NaN.
        """
        return not self.distance_ratio_ci[1] < 1


def compare_sets(
    students: Sequence[Sequence[ScoredSet]],
    teacher: Sequence[ScoredSet],
    *,
    is_higher_better: bool = True,
    seed: int = 0,
) -> SetComparison:
    """Compare students of several training seeds with their teacher.

    Args:
        students: the sets of each student, such as one for each length.
        teacher: its sets, as many as each student has.
        is_higher_better: whether a larger score is better.
        seed: seed of the resampling.

    Raises:
        UsageError: there is no set, or a student has another number of sets than the teacher.
    """
    if not students or not teacher or any(len(sets) != len(teacher) for sets in students):
        sizes = ", ".join(str(len(sets)) for sets in students)
        raise UsageError(f"each student has as many sets as the teacher, one or more; got {sizes} and {len(teacher)}")
    pooled = [scored_set for sets in students for scored_set in sets]

    def compared(values: Callable[[ScoredSet], Tensor], *, is_ratio: bool) -> tuple[float, Interval]:
        sides = [[values(scored_set) for scored_set in sets] for sets in (pooled, teacher)]
        draws = [_resampled_means(sets, torch.Generator().manual_seed(seed + n)) for n, sets in enumerate(sides)]
        means = [_mean(sets) for sets in sides]
        resampled = draws[0] / draws[1] if is_ratio else draws[0] - draws[1]
        value = (means[0] / means[1] if means[1] else math.nan) if is_ratio else means[0] - means[1]
        return value, percentile_interval(resampled)

    difference, difference_ci = compared(lambda scored: scored.scores, is_ratio=False)
    base = _mean([scored_set.scores for scored_set in teacher])
    seeds = estimate([_mean([scored_set.scores for scored_set in sets]) - base for sets in students])
    ratio, ratio_ci = compared(lambda scored: scored.entropies, is_ratio=True)
    distance_ratio, distance_ratio_ci = compared(lambda scored: scored.distances, is_ratio=True)
    novelty: tuple[float, Interval] = math.nan, NAN_INTERVAL
    if all(scored_set.identities is not None for scored_set in (*pooled, *teacher)):
        novelty = compared(_identities, is_ratio=False)
    measured = (difference, difference_ci, (seeds.low, seeds.high), ratio, ratio_ci, distance_ratio, distance_ratio_ci)
    return SetComparison(*measured, *novelty, is_higher_better=is_higher_better)


def _identities(scored_set: ScoredSet) -> Tensor:
    assert scored_set.identities is not None
    return scored_set.identities


def _mean(sets: Sequence[Tensor]) -> float:
    return float(torch.stack([values.double().mean() for values in sets]).mean())


def _resampled_means(sets: Sequence[Tensor], generator: torch.Generator) -> Float[Tensor, " r"]:
    """Bootstrap replicates of the mean over sets, each set resampled with replacement."""
    replicates = []
    for values in sets:
        draws = torch.randint(len(values), (NUM_RESAMPLES, len(values)), generator=generator)
        replicates.append(values.double()[draws].mean(1))
    return torch.stack(replicates).mean(0)
