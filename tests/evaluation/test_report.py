"""Rows of an evaluation, their table and figures, the written samples and the report."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.evaluation.diversity import self_bleu, sequence_repetition, token_entropy
from didi.evaluation.figure import frontier_figure, latency_figure, perplexity_figure
from didi.evaluation.machine import machine_name
from didi.evaluation.perplexity import ExactJudge, Scores
from didi.evaluation.report import rows_table, write_metrics, write_report, write_samples
from didi.evaluation.row import EvaluationRow, SampleSet, measure

FIELDS = [
    "role",
    "sampler",
    "nfe",
    "network_passes",
    "discriminator_passes",
    "num_samples",
    "precision",
    "judge",
    "gen_ppl",
    "gen_ppl_ci",
    "gen_ppl_mean_sample",
    "entropy",
    "entropy_ci",
    "corpus_entropy",
    "bigram_entropy",
    "distinct_4",
    "seconds_per_sequence",
    "tokens_per_second",
    "nelbo",
    "seed",
    "machine",
    "temperature",
    "top_p",
    "grid",
    "settings",
    "note",
    "repetition_4",
    "self_bleu",
    "mauve",
    "kl",
    "reverse_kl",
    "total_variation",
    "joint_entropy",
    "pair_kl",
    "pair_kl_ci",
    "pair_reverse_kl",
    "pair_reverse_kl_ci",
    "triple_kl",
    "triple_kl_ci",
    "triple_reverse_kl",
    "triple_reverse_kl_ci",
    "joint_kl",
    "joint_kl_ci",
    "joint_reference",
]


def make_row(role="student", sampler="ancestral", nfe=8, ppl=50.0, entropy=4.2, **changes):
    row = EvaluationRow(
        role, sampler, nfe, float(nfe), 0.0, 64, "float64", "markov", ppl, (ppl * 0.9, ppl * 1.1), ppl * 1.05, entropy,
        (entropy - 0.1, entropy + 0.1), 5.0, 7.0, 0.9, 0.01, 12800.0, math.nan, 0, "2-core CPU",
    )  # fmt: skip
    return replace(row, **changes)


def sweep():
    rows = [make_row("data", "data", 0, 30.0, 4.3, seconds_per_sequence=math.nan, tokens_per_second=math.nan)]
    for nfe in (4, 8, 16, 32):
        rows.append(make_row("teacher", "ancestral", nfe, 4000 / nfe))
        rows.append(make_row("student", "ancestral", nfe, 400 / nfe))
        rows.append(make_row("student", "guided", nfe, 300 / nfe, discriminator_passes=4.0 * nfe))
    return rows


def test_a_measured_row_has_all_fields_in_their_order():
    chain = MarkovChain()
    tokens = chain.sample(40, 32, torch.Generator().manual_seed(0))
    scores = ExactJudge(chain).score([""] * 40, tokens)
    row = measure("teacher", "ancestral", 16, tokens, scores, judge="markov", seconds=2.0, network_passes=15.5, seed=3)
    assert list(asdict(row)) == FIELDS
    assert (row.num_samples, row.seconds_per_sequence, row.tokens_per_second) == (40, 0.05, 640.0)
    assert (row.judge, row.seed, row.network_passes, row.precision) == ("markov", 3, 15.5, "float64")
    assert row.gen_ppl == pytest.approx(math.exp(-float(chain.log_likelihood(tokens).mean()) / 32))
    assert row.gen_ppl_ci[0] < row.gen_ppl < row.gen_ppl_ci[1]
    assert row.entropy == pytest.approx(float(token_entropy(tokens).mean()))
    assert row.entropy_ci[0] < row.entropy < row.entropy_ci[1]
    assert row.entropy < row.corpus_entropy < row.bigram_entropy
    assert row.repetition_4 == pytest.approx(float(sequence_repetition(tokens, 4).mean()))
    assert row.self_bleu == self_bleu(tokens)
    assert row.machine == machine_name()


def test_the_note_of_a_row_counts_samples_cut_by_the_judge():
    scores = Scores(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.long), num_truncated=1)
    tokens = torch.arange(8).view(2, 4)
    row = measure("student", "greedy", 4, tokens, scores, judge="short", seconds=1.0, network_passes=4.0, note="top-p")
    assert row.note == "top-p; 1 samples cut to the judge's context"


def test_measure_refuses_scores_of_other_samples():
    scores = Scores(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.long))
    with pytest.raises(ValueError, match="got 2 and 1"):
        measure("student", "ancestral", 4, torch.ones(2, 4).long(), scores, judge="j", seconds=1.0, network_passes=4.0)


def test_settings_of_a_sampler_are_a_column_only_where_they_differ():
    plain, guided = make_row(), make_row(sampler="guided", settings="num_candidates 8")
    table = rows_table([plain, guided])
    assert "| settings" not in table
    assert "; guided: num_candidates 8. Perplexity is" in table
    table = rows_table([plain, guided, replace(guided, settings="num_candidates 3")])
    assert table.splitlines()[0].endswith("settings |")
    assert [line.split("|")[-2].strip() for line in table.splitlines()[2:5]] == [
        "",
        "num_candidates 8",
        "num_candidates 3",
    ]
    assert "guided: " not in table


def test_metrics_are_json_with_null_for_what_is_not_finite(tmp_path):
    rows = [make_row(), make_row(gen_ppl=math.inf, gen_ppl_ci=(math.nan, 3.0))]
    path = write_metrics(rows, tmp_path / "new")
    first, second = json.loads(path.read_text())
    assert list(first) == FIELDS
    assert first["gen_ppl_ci"] == pytest.approx([45, 55])
    assert (second["gen_ppl"], second["gen_ppl_ci"]) == (None, [None, 3.0])
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_a_failed_write_leaves_the_old_metrics(tmp_path):
    path = write_metrics([make_row()], tmp_path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_metrics([make_row(seed=object())], tmp_path)
    assert path.read_bytes() == before


def test_the_table_has_entropy_and_intervals_beside_every_perplexity():
    lines = rows_table([make_row(), make_row(nfe=16, ppl=3.0)], recipe="tiny-news").splitlines()
    assert lines[2].split(" | ")[5].strip() == "50.0 [45.0, 55.0]"
    assert lines[2].split(" | ")[7].strip() == "4.20 [4.10, 4.30]"
    assert lines[3].split(" | ")[5].strip() == "3.00 [2.70, 3.30]"
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[1].count("-:") == 11
    assert lines[5].startswith(
        "Recipe tiny-news; seed 0; sampling in float64; temperature 1; top-p 1; uniform time grid; 64 samples; "
        "judge markov; 2-core CPU."
    )


def test_exact_divergences_have_columns_and_a_footnote_if_a_row_has_them():
    plain = rows_table([make_row()])
    assert "KL" not in plain
    table = rows_table([make_row(kl=0.25, reverse_kl=0.3, total_variation=0.5, joint_entropy=2.0), make_row()])
    header, _, first, second = (line.split("|") for line in table.splitlines()[:4])
    names = [name.strip() for name in header]
    assert names[-5:-1] == ["KL", "reverse KL", "total variation", "joint entropy"]
    assert [cell.strip() for cell in first[-5:-1]] == ["0.2500", "0.3000", "0.5000", "2.000"]
    assert [cell.strip() for cell in second[-5:-1]] == ["–"] * 4
    assert "KL(sampler, data)" in table.splitlines()[-1]


def test_a_column_without_values_is_left_out():
    header = rows_table([make_row(self_bleu=0.25)]).splitlines()[0]
    assert "self-BLEU" in header
    assert "MAUVE" not in header
    assert "NELBO" not in header


def test_a_setting_that_differs_between_rows_becomes_a_column():
    table = rows_table([make_row(), make_row(precision="float32", note="a|b")])
    header, _, first, second = table.splitlines()[:4]
    assert header.endswith("precision | note |")
    assert first.split(" | ")[-2].strip() == "float64"
    assert "float32" in second
    assert r"a\|b" in second
    assert "sampling in" not in table


@pytest.mark.slow
def test_figure_is_drawn_without_pyplot(tmp_path):
    path = perplexity_figure(sweep(), tmp_path / "figures" / "perplexity.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        [make_row()],
        [make_row("data", "data", 0)],
        [make_row(gen_ppl=math.nan, gen_ppl_ci=(math.nan, math.nan)), make_row(nfe=4)],
        [make_row(gen_ppl_ci=(60.0, 70.0))],  # a percentile interval need not contain its estimate
        [make_row("mine", seed=seed) for seed in (0, 1)],
    ],
    ids=["one row", "data only", "nan", "interval beside its estimate", "seeds of an unknown role"],
)
def test_the_figure_is_drawn_for_any_rows_of_an_evaluation(tmp_path, rows):
    assert perplexity_figure(rows, tmp_path / "figure.png").stat().st_size > 10_000


def make_set(row, texts=("a", "b", "c"), nll=10.0):
    scores = Scores(torch.full((3,), nll, dtype=torch.float64), torch.full((3,), 4))
    return SampleSet(row, list(texts), scores, torch.full((3,), row.entropy, dtype=torch.float64))


@pytest.mark.slow
def test_the_report_has_a_table_a_figure_and_texts_that_are_not_rendered_as_markdown(tmp_path):
    rows = sweep()
    sets = [make_set(row) for row in rows]
    sets[0] = make_set(rows[0], ["plain text", "a fence\n```\nand <html>", "never shown"])
    sets[-1] = make_set(rows[-1], ["word " * 60, "b", "c"])
    report = write_report(sets, tmp_path, title="Tiny news", recipe="tiny-news").read_text()
    assert report.startswith("# Tiny news\n\n| role")
    assert "](perplexity.png)" in report
    assert (tmp_path / "perplexity.png").exists()
    headings = [line for line in report.splitlines() if line.startswith("## ")]
    assert headings[:3] == ["## Pair by pair", "## data", "## teacher, ancestral, 4 NFE"]
    assert len(headings) == 1 + len(rows)
    assert "````text\na fence\n```\nand <html>\n````" in report
    assert "never shown" not in report
    assert max(len(line) for line in report.split("## student, guided, 32")[1].splitlines()) <= 100
    assert "| student, ancestral, 8 NFE | teacher, ancestral, 8 NFE | 1.000" in report
    assert "At equal entropy" not in report


@pytest.mark.slow
def test_sweeps_add_a_comparison_at_equal_entropy_to_the_report(tmp_path):
    sets = [
        make_set(make_row(role, ppl=ppl * scale, entropy=4 + temperature / 2, temperature=temperature))
        for role, scale in (("teacher", 1.0), ("student", 0.5))
        for temperature, ppl in ((0.8, 50.0), (1.0, 100.0))
    ]
    report = write_report(sets, tmp_path, title="Sweeps").read_text()
    assert "| student, ancestral, 8 NFE | teacher, ancestral, 8 NFE | 0.500 | 0.500 | 4.40 to 4.50 |" in report
    assert (tmp_path / "frontier.png").stat().st_size > 20_000
    assert "| student, ancestral, 8 NFE, temperature 0.8 | teacher, ancestral, 8 NFE, temperature 0.8 |" in report
    assert report.count("## student") == 1  # texts once, not for each temperature


def test_each_sample_is_written_with_its_scores(tmp_path):
    sets = [make_set(make_row()), make_set(make_row(nfe=16), nll=math.inf)]
    records = [json.loads(line) for line in write_samples(sets, tmp_path).read_text().splitlines()]
    assert [(record["nfe"], record["number"]) for record in records] == [(n, i) for n in (8, 16) for i in range(3)]
    assert records[1] | {"role": "student", "text": "b", "nll": 10.0, "judge_tokens": 4, "entropy": 4.2} == records[1]
    assert records[3]["nll"] is None


def test_the_machine_name_has_cores_and_torch_and_no_host_name():
    import platform

    name = machine_name()
    assert f"torch {torch.__version__.split('+')[0]}" in name
    assert "-core" in name
    assert f"{torch.get_num_threads()} thread" in name
    assert platform.node() not in name


@pytest.mark.slow
def test_frontier_and_latency_figures_are_drawn_for_sweeps_single_rows_and_data(tmp_path):
    rows = sweep() + [
        make_row(role, nfe=nfe, ppl=100 * temperature, entropy=4 + temperature / 2, temperature=temperature)
        for role, nfe in (("teacher", 32), ("student", 8), ("autoregressive", 32))
        for temperature in (0.8, 1.1)
    ]
    for draw in (frontier_figure, latency_figure):
        path = draw(rows, tmp_path / f"{draw.__name__}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000
