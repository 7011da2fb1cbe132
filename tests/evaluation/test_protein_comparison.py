"""Students against their teacher, by scores, entropies, distances and novelty of their sequences."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

from didi.errors import UsageError
from didi.evaluation.protein.comparison import ENTROPY_TOLERANCE, ScoredSet, compare_sets


def drawn(seed, num, shift=0.0, has_identities=True):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, num, dtype=torch.float64, generator=generator)
    identities = 0.3 + 0.01 * values[2] + shift / 10 if has_identities else None
    return ScoredSet(
        values[0] + shift, 2.5 + 0.1 * values[1] - shift / 5, 0.5 + 0.02 * values[3] - shift / 9, identities
    )


STUDENTS = [[drawn(1, 30, 1.0), drawn(2, 50, 0.5)], [drawn(3, 20, 1.2), drawn(4, 40, 0.4)]]
TEACHER = [drawn(5, 60), drawn(6, 25)]


def values_of(sets, field):
    return [getattr(scored, field) for scored in sets]


def mean(sets, field):
    return sum(float(values.mean()) for values in values_of(sets, field)) / len(sets)


def error_of(sets, field):
    """Standard error of the mean over sets."""
    variances = [float(values.var(correction=0)) / len(values) for values in values_of(sets, field)]
    return math.sqrt(sum(variances)) / len(sets)


def test_means_give_each_set_the_same_weight():
    comparison = compare_sets(STUDENTS, TEACHER)
    pooled = [*STUDENTS[0], *STUDENTS[1]]
    assert comparison.difference == pytest.approx(mean(pooled, "scores") - mean(TEACHER, "scores"))
    assert comparison.entropy_ratio == pytest.approx(mean(pooled, "entropies") / mean(TEACHER, "entropies"))
    assert comparison.distance_ratio == pytest.approx(mean(pooled, "distances") / mean(TEACHER, "distances"))
    assert comparison.identity_difference == pytest.approx(mean(pooled, "identities") - mean(TEACHER, "identities"))


def test_the_bootstrap_interval_is_that_of_independent_sequences():
    comparison = compare_sets(STUDENTS, TEACHER)
    pooled = [*STUDENTS[0], *STUDENTS[1]]
    for field, value, ends in (
        ("scores", comparison.difference, comparison.difference_ci),
        ("identities", comparison.identity_difference, comparison.identity_difference_ci),
    ):
        half = 1.96 * math.hypot(error_of(pooled, field), error_of(TEACHER, field))
        assert ends == pytest.approx((value - half, value + half), abs=0.15 * half)
    for field, ratio, ends in (
        ("entropies", comparison.entropy_ratio, comparison.entropy_ratio_ci),
        ("distances", comparison.distance_ratio, comparison.distance_ratio_ci),
    ):
        errors = [error_of(sets, field) / mean(sets, field) for sets in (pooled, TEACHER)]
        half = 1.96 * ratio * math.hypot(*errors)
        assert ends == pytest.approx((ratio - half, ratio + half), abs=0.15 * half)


def test_the_interval_over_seeds_is_that_of_the_means_of_the_students():
    differences = [mean(sets, "scores") - mean(TEACHER, "scores") for sets in STUDENTS]
    half = stats.t.ppf(0.975, 1) * abs(differences[0] - differences[1]) / 2
    centre = sum(differences) / 2
    assert compare_sets(STUDENTS, TEACHER).seeds_ci == pytest.approx((centre - half, centre + half))
    assert all(map(math.isnan, compare_sets(STUDENTS[:1], TEACHER).seeds_ci))


def test_score_entropy_novelty_and_diversity_are_judged_separately():
    better = compare_sets(STUDENTS, TEACHER)
    assert (better.has_better_score, better.keeps_entropy, better.is_as_novel) == (True, False, False)
    assert not better.is_as_diverse
    assert replace(better, distance_ratio_ci=(0.9, 1.0)).is_as_diverse
    assert not replace(better, difference_ci=(-0.01, 2.0)).has_better_score
    for sign in (1, -1):
        assert replace(better, entropy_ratio=1 + sign * (ENTROPY_TOLERANCE - 1e-9)).keeps_entropy
        assert not replace(better, entropy_ratio=1 + sign * (ENTROPY_TOLERANCE + 1e-9)).keeps_entropy
    assert replace(better, identity_difference_ci=(0.0, 0.2)).is_as_novel
    worse = compare_sets([TEACHER], STUDENTS[0])
    assert (worse.has_better_score, worse.keeps_entropy, worse.is_as_novel) == (False, False, True)
    assert worse.is_as_diverse
    equal = [replace(scored, distances=torch.zeros_like(scored.distances)) for scored in TEACHER]
    assert compare_sets([equal], equal).is_as_diverse
    assert not compare_sets([equal], TEACHER).is_as_diverse
    assert compare_sets([TEACHER], STUDENTS[0], is_higher_better=False).has_better_score
    assert not compare_sets(STUDENTS, TEACHER, is_higher_better=False).has_better_score


def test_novelty_is_not_compared_if_a_set_has_no_identities():
    comparison = compare_sets([[drawn(1, 8), drawn(2, 8, has_identities=False)]], TEACHER)
    assert comparison.is_as_novel is None
    assert math.isnan(comparison.identity_difference)
    assert comparison.difference == pytest.approx(mean([drawn(1, 8), drawn(2, 8)], "scores") - mean(TEACHER, "scores"))


def test_students_and_teacher_have_the_same_number_of_sets():
    for students in ([], [TEACHER[:1]], [TEACHER, TEACHER[:1]]):
        with pytest.raises(UsageError, match=r"as many sets as the teacher, one or more; got .* and 2"):
            compare_sets(students, TEACHER)
