import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from didi.data.markov import MarkovChain
from didi.evaluation.diversity import token_entropy
from didi.evaluation.figure import frontier_figure, latency_figure, temperature_sweeps
from didi.evaluation.perplexity import ExactJudge, Scores
from didi.evaluation.report import (
    EvaluationRow,
    machine_name,
    markdown_table,
    measure,
    perplexity_figure,
    write_metrics,
    write_report,
)

FIELDS = [
    "role",
    "sampler",
    "nfe",
    "student_passes",
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


def test_measure_fills_every_field_of_the_contract():
    chain = MarkovChain()
    tokens = chain.sample(40, 32, torch.Generator().manual_seed(0))
    row = measure(
        "teacher", "ancestral", 16, tokens, [""] * 40, ExactJudge(chain), seconds=2.0, student_passes=15.5, seed=3
    )
    assert list(asdict(row)) == FIELDS
    assert (row.num_samples, row.seconds_per_sequence, row.tokens_per_second) == (40, 0.05, 640.0)
    assert (row.judge, row.seed, row.student_passes, row.precision) == ("markov", 3, 15.5, "float64")
    assert row.gen_ppl == pytest.approx(math.exp(-float(chain.log_likelihood(tokens).mean()) / 32))
    assert row.gen_ppl_ci[0] < row.gen_ppl < row.gen_ppl_ci[1]
    assert row.entropy == pytest.approx(float(token_entropy(tokens).mean()))
    assert row.entropy_ci[0] < row.entropy < row.entropy_ci[1]
    assert row.entropy < row.corpus_entropy < row.bigram_entropy
    assert row.machine == machine_name()


def test_measure_records_what_the_judge_cut():
    class Cutting:
        name = "short"

        def score(self, texts, tokens):
            return Scores(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.long), num_truncated=1)

    tokens = torch.arange(8).view(2, 4)
    row = measure("student", "greedy", 4, tokens, ["a", "b"], Cutting(), seconds=1.0, student_passes=4.0, note="top-p")
    assert row.note == "top-p; 1 samples cut to the judge's context"


def test_measure_refuses_texts_that_are_not_the_tokens():
    tokens, judge = torch.ones(2, 4, dtype=torch.long), ExactJudge(MarkovChain())
    with pytest.raises(ValueError, match="got 2 and 1"):
        measure("student", "ancestral", 4, tokens, ["a"], judge, seconds=1.0, student_passes=4.0)


def test_settings_of_a_sampler_are_a_column_only_where_they_differ():
    plain, guided = make_row(), make_row(sampler="guided", settings="num_candidates 8")
    table = markdown_table([plain, guided])
    assert "| settings" not in table
    assert "; guided: num_candidates 8. Perplexity is" in table
    table = markdown_table([plain, guided, replace(guided, settings="num_candidates 3")])
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


def test_table_shows_entropy_and_interval_beside_every_perplexity():
    lines = markdown_table([make_row(), make_row(nfe=16, ppl=3.0)], recipe="tiny-news").splitlines()
    assert lines[2].split(" | ")[5].strip() == "50.0 [45.0, 55.0]"
    assert lines[2].split(" | ")[7].strip() == "4.20 [4.10, 4.30]"
    assert lines[3].split(" | ")[5].strip() == "3.00 [2.70, 3.30]"
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[1].count("-:") == 12
    assert lines[5].startswith(
        "Recipe tiny-news; seed 0; sampling in float64; temperature 1; top-p 1; uniform time grid; 64 samples; "
        "judge markov; 2-core CPU."
    )


def test_a_setting_that_differs_between_rows_becomes_a_column():
    table = markdown_table([make_row(), make_row(precision="float32", note="a|b")])
    header, _, first, second = table.splitlines()[:4]
    assert header.endswith("precision | note |")
    assert first.split(" | ")[-2].strip() == "float64"
    assert "float32" in second
    assert r"a\|b" in second
    assert "sampling in" not in table


def test_figure_is_drawn_without_pyplot(tmp_path):
    path = perplexity_figure(sweep(), tmp_path / "figures" / "perplexity.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "rows",
    [
        [make_row()],
        [make_row("data", "data", 0)],
        [make_row(gen_ppl=math.nan, gen_ppl_ci=(math.nan, math.nan)), make_row(nfe=4)],
        [make_row(gen_ppl_ci=(60.0, 70.0))],  # a percentile interval need not hold its estimate
        [make_row("mine", seed=seed) for seed in (0, 1)],
    ],
    ids=["one row", "data only", "nan", "interval beside its estimate", "seeds of an unknown role"],
)
def test_figure_takes_what_an_evaluation_may_yield(tmp_path, rows):
    assert perplexity_figure(rows, tmp_path / "figure.png").stat().st_size > 10_000


def test_report_holds_table_figure_and_texts_that_cannot_break_it(tmp_path):
    rows = sweep()
    samples = [["plain text", "a fence\n```\nand <html>"], *[[]] * (len(rows) - 2), ["word " * 60]]
    report = write_report(rows, tmp_path, title="Tiny news", samples=samples, recipe="tiny-news").read_text()
    assert report.startswith("# Tiny news\n\n| role")
    assert "](perplexity.png)" in report
    assert (tmp_path / "perplexity.png").exists()
    assert [line for line in report.splitlines() if line.startswith("## ")] == ["## data", "## student, guided, 32 NFE"]
    assert "````text\na fence\n```\nand <html>\n````" in report
    assert max(len(line) for line in report.split("## student")[1].splitlines()) <= 100


def test_machine_name_says_cores_and_torch_but_no_host():
    import platform

    name = machine_name()
    assert f"torch {torch.__version__.split('+')[0]}" in name
    assert "-core" in name
    assert f"{torch.get_num_threads()} thread" in name
    assert platform.node() not in name


def test_frontier_and_latency_figures_take_sweeps_single_points_and_data(tmp_path):
    rows = sweep() + [
        make_row(role, nfe=nfe, ppl=100 * temperature, entropy=4 + temperature / 2, temperature=temperature)
        for role, nfe in (("teacher", 32), ("student", 8), ("autoregressive", 32))
        for temperature in (0.8, 1.1)
    ]
    for draw in (frontier_figure, latency_figure):
        path = draw(rows, tmp_path / f"{draw.__name__}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000


def test_a_sweep_is_one_model_sampler_and_nfe_in_order_of_temperature():
    rows = [make_row(nfe=nfe, temperature=temperature) for temperature in (1.1, 0.8, 1.0) for nfe in (8, 32)]
    rows.append(make_row(sampler="guided", nfe=8))
    found = temperature_sweeps(rows)
    assert set(found) == {("student", "ancestral", 8), ("student", "ancestral", 32), ("student", "guided", 8)}
    assert [row.temperature for row in found["student", "ancestral", 8]] == [0.8, 1.0, 1.1]
