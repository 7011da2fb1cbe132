"""Sweeps of temperature or top-p, and their comparison at equal entropy."""

import math

from didi.evaluation.row import EvaluationRow
from didi.evaluation.sweeps import equal_entropy_table, sweeps


def make_row(role="student", *, entropy=4.0, ppl=100.0, sampler="ancestral", nfe=8, judge="j", **token_distribution):
    return EvaluationRow(
        role, sampler, nfe, 8.0, 0.0, 64, "float64", judge, ppl, (ppl, ppl), ppl, entropy, (entropy, entropy), 5.0, 7.0,
        0.9, 0.01, 12800.0, math.nan, 0, "2-core CPU", **token_distribution,
    )  # fmt: skip


def test_a_sweep_is_one_model_sampler_and_nfe_in_order_of_temperature():
    rows = [make_row(nfe=nfe, temperature=temperature) for temperature in (1.1, 0.8, 1.0) for nfe in (8, 32)]
    rows.append(make_row(sampler="guided"))
    by_label = {sweep.label(): [row.temperature for row in sweep.rows] for sweep in sweeps(rows)}
    assert by_label == {
        "student, ancestral, 8 NFE": [0.8, 1, 1.1],
        "student, ancestral, 32 NFE": [0.8, 1, 1.1],
        "student, guided, 8 NFE": [1],
    }


def test_exact_samples_are_in_sweeps_of_temperature_and_of_top_p():
    rows = [make_row(), make_row(temperature=0.9), make_row(top_p=0.9), make_row(top_p=0.9, temperature=0.9)]
    rows.append(make_row("data", nfe=0, sampler=""))
    by_label = {sweep.label(): [(row.temperature, row.top_p) for row in sweep.rows] for sweep in sweeps(rows)}
    assert by_label == {
        "student, ancestral, 8 NFE": [(0.9, 1), (1, 1)],
        "student, ancestral, 8 NFE, top-p": [(1, 0.9), (1, 1)],
        "data": [(1, 1)],
    }


def test_sweeps_are_compared_over_their_common_entropies():
    curve = [(4.0, 100.0), (4.2, 200.0), (4.4, 400.0)]
    rows = [make_row("teacher", entropy=h, ppl=ppl, temperature=0.9 + i / 10) for i, (h, ppl) in enumerate(curve)]
    rows += [make_row(entropy=h + 0.1, ppl=ppl / 2, temperature=0.9 + i / 10) for i, (h, ppl) in enumerate(curve)]
    rows.append(make_row("other", entropy=5.0))  # a single row is no sweep
    line = equal_entropy_table(rows).splitlines()[2]
    at_exact = 100 / 200 / math.sqrt(2)
    assert (
        line
        == f"| student, ancestral, 8 NFE | teacher, ancestral, 8 NFE | {at_exact:.3f} | {at_exact:.3f} | 4.10 to 4.40 |"
    )


def test_sweeps_without_common_entropies_have_no_ratio_and_judges_are_compared_separately():
    low, high = (
        [make_row(role, entropy=h + i, temperature=0.9 + i / 10) for i in range(2)]
        for role, h in (("a", 1.0), ("b", 3.0))
    )
    assert (
        equal_entropy_table(low + high).splitlines()[2]
        == "| b, ancestral, 8 NFE | a, ancestral, 8 NFE | – | – | none |"
    )
    other = [make_row("b", entropy=1.0 + i, judge="k", temperature=0.9 + i / 10) for i in range(2)]
    assert equal_entropy_table(low + other) is None


def test_a_sweep_without_exact_samples_has_no_ratio_at_exact_samples():
    rows = [make_row(role, entropy=t, temperature=t) for role in ("a", "b") for t in (0.8, 0.9)]
    assert (
        equal_entropy_table(rows).splitlines()[2]
        == "| b, ancestral, 8 NFE | a, ancestral, 8 NFE | – | 1.000 | 0.80 to 0.90 |"
    )
