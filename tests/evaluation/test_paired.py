"""Paired comparisons of sample sets: ratios, intervals, p-values and the table."""

import math
from dataclasses import replace

import pytest
import torch

from didi.evaluation.paired import NUM_PERMUTATIONS, compare_pairs, comparison_table
from didi.evaluation.perplexity import Scores
from didi.evaluation.row import EvaluationRow, SampleSet


def make_set(nll, entropies=None, tokens=10, role="student", log_ratios=None, **fields):
    row = EvaluationRow(
        role, "ancestral", 8, 8.0, 0.0, len(nll), "float64", "j", 1.0, (1.0, 1.0), 1.0, 4.0, (4.0, 4.0), 5.0, 7.0, 0.9,
        0.01, 1.0, math.nan, 0, "2-core CPU",
    )  # fmt: skip
    nll = torch.as_tensor(nll, dtype=torch.float64)
    entropies = torch.zeros_like(nll) if entropies is None else torch.as_tensor(entropies, dtype=torch.float64)
    scores = Scores(nll, torch.full((len(nll),), tokens))
    return SampleSet(replace(row, **fields), [""] * len(nll), scores, entropies, log_ratios)


def test_noise_shared_by_pairs_cancels():
    generator = torch.Generator().manual_seed(0)
    shared = 40 + 10 * torch.randn(200, generator=generator, dtype=torch.float64)
    own = 0.5 + 0.1 * torch.randn(200, generator=generator, dtype=torch.float64)
    comparison = compare_pairs(make_set(shared + own, shared + own), make_set(shared, shared))
    assert comparison.perplexity_ratio == pytest.approx(math.exp(float(own.mean()) / 10))
    low, high = comparison.perplexity_ratio_ci
    assert 1 < low < comparison.perplexity_ratio < high
    assert high - low < 0.005  # unpaired intervals are some fifty times as wide
    assert comparison.p_value == 1 / (NUM_PERMUTATIONS + 1)
    assert comparison.entropy_gap == pytest.approx(float(own.mean()))
    assert comparison.entropy_gap_ci[0] < comparison.entropy_gap < comparison.entropy_gap_ci[1]


@pytest.mark.slow
def test_p_values_without_a_difference_are_uniform():
    generator = torch.Generator().manual_seed(1)
    values = []
    for _ in range(100):
        first, second = torch.randn(2, 20, generator=generator, dtype=torch.float64) + 30
        values.append(compare_pairs(make_set(first), make_set(second)).p_value)
    assert sum(value < 0.1 for value in values) < 22  # ten expected, standard deviation 3
    assert sum(value < 0.5 for value in values) == pytest.approx(50, abs=20)


def test_the_p_value_is_that_of_all_sign_changes():
    first, second = make_set([30.0, 31.0, 35.0]), make_set([29.0, 33.0, 28.0])
    ratios = []
    for signs in range(8):
        gaps = [(1 if signs >> i & 1 else -1) * gap for i, gap in enumerate((1.0, -2.0, 7.0))]
        ratios.append(abs(sum(gaps)))
    exact = sum(ratio >= 6 for ratio in ratios) / 8
    assert compare_pairs(first, second).p_value == pytest.approx(exact, abs=0.02)


def test_a_text_of_probability_0_has_no_p_value():
    assert math.isnan(compare_pairs(make_set([30.0, math.inf]), make_set([31.0, 32.0])).p_value)


def test_equal_sets_do_not_differ_and_sets_of_different_sizes_are_refused():
    same = make_set([30.0, 31.0])
    comparison = compare_pairs(same, same)
    assert (comparison.perplexity_ratio, comparison.p_value, comparison.entropy_gap) == (1, 1, 0)
    with pytest.raises(ValueError, match="got 2 and 1"):
        compare_pairs(same, make_set([30.0]))


def test_sets_are_compared_with_the_teachers_of_the_same_moves_and_token_distribution():
    student = make_set([30.0, 31.0], [4.0, 4.1])
    teacher = make_set([31.0, 32.0], [4.2, 4.3], role="teacher")
    others = [make_set([30.0, 31.0], nfe=16), make_set([30.0, 31.0], nfe=0, role="data")]
    others += [make_set([30.0, 31.0], temperature=0.9), make_set([3.0, 3.0], temperature=0.9, sampler="guided")]
    lines = comparison_table([student, *others, teacher]).splitlines()[2:4]
    assert lines[0].startswith("| student, ancestral, 8 NFE | teacher, ancestral, 8 NFE | 0.905 [0.905, 0.905] |")
    assert lines[0].endswith("| -0.200 [-0.200, -0.200] |")
    label = "ancestral, 8 NFE, temperature 0.9"
    assert lines[1].startswith(f"| student, guided, 8 NFE, temperature 0.9 | student, {label} |")
    assert comparison_table([student, *others[:2]]) is None


def test_joint_divergences_from_the_same_reference_are_compared():
    ratios = torch.tensor([2.0, 4.0], dtype=torch.float64)
    fields = {"joint_kl": 3.0, "joint_reference": "markov"}
    student = make_set([30.0, 31.0], log_ratios=ratios, **fields)
    teacher = make_set([31.0, 32.0], role="teacher", log_ratios=2 * ratios, **fields)
    assert compare_pairs(student, teacher).joint.ratio == pytest.approx(0.5)
    header, _, row = comparison_table([student, teacher]).splitlines()[:3]
    assert header.endswith("| entropy gap [95% CI] | joint KL gap [95% CI] | joint KL ratio [95% CI] |")
    assert row.endswith("| -3.00 [-4.00, -2.00] | 0.500 [0.500, 0.500] |")
    elsewhere = replace(teacher, row=replace(teacher.row, joint_reference="news"))
    assert compare_pairs(student, elsewhere).joint is None
    assert "joint" not in comparison_table([student, elsewhere])
    without = make_set([31.0, 32.0], role="teacher", temperature=0.9)
    alike = make_set([30.0, 31.0], temperature=0.9)
    assert comparison_table([student, teacher, without, alike]).splitlines()[3].endswith("| – | – |")
