"""Tables 1 and 2 and the sample texts in the report of a study."""

import math
from pathlib import Path

import pytest

from didi.apps.reproduce import command
from didi.apps.reproduce.figures import figure_1, figure_3_cells
from didi.apps.reproduce.study import Sampling, Study
from didi.apps.reproduce.tables import ratio_cell, table_1, table_2
from didi.evaluation.report import write_html
from didi.evaluation.row import EvaluationRow
from didi.files import write_atomically
from didi.methods.elbo import PretrainConfig
from didi.recipes.ablations import TRICKS


class TrickStudy(Study):
    """A study whose results are formulas: perplexity is 100 * 0.8^tricks * 1.03^seed / moves at temperature 1."""

    def row(self, cell):
        if isinstance(cell.bundle, str) or isinstance(cell.bundle.config, PretrainConfig):
            tricks, seed = 0, 0
        else:
            objective = vars(cell.bundle.config.objective)
            tricks = sum(all(objective[name] == value for name, value in trick.items()) for trick in TRICKS.values())
            seed = cell.bundle.config.seed
        # The temperature adds nats to the entropy, and twice as many to the log-perplexity.
        added = 0.2 * math.log(cell.temperature)
        ppl = 100 * 0.8**tricks * 1.03**seed / max(1, cell.nfe) * math.exp(2 * added)
        return EvaluationRow(
            cell.role, cell.sampler, cell.nfe, 1.0, 0.0, 8, "float64", "j", ppl, (ppl, ppl), ppl,
            4.0 - tricks / 100 + added, (4.0, 4.0), 5.0, 7.0, 0.9, 0.01, 1.0, 1.0, 0, "machine",
        )  # fmt: skip

    def record(self, cell):
        return {"texts": [f"- {cell.role}\n```\n<script>alert(1)</script>"]}


@pytest.mark.slow
def test_a_text_cannot_break_the_report(tmp_path):
    plan = command._plan(command.ReproduceCommand("tiny", tmp_path))
    lines = figure_1(plan, TrickStudy(tmp_path, Sampling(8, "j")))
    html = write_html(write_atomically(tmp_path / "report.md", "\n".join(["# report", "", *lines]))).read_text()
    generated = [cell.role for cell in figure_3_cells(plan) if cell.role not in ("data", "shuffled words")]
    assert html.count("&lt;script&gt;") == len(generated)  # one text of each generated set, none of the corpus
    assert all(f"- {role}\n" in "\n".join(lines) for role in generated)
    assert "- data\n" not in "\n".join(lines)
    assert "<script>" not in html
    assert "<li>" not in html


@pytest.mark.parametrize(("scale", "is_shown"), [("tiny", False), ("paper", True)])
def test_published_figures_are_shown_only_at_paper_scale(scale, is_shown):
    plan = command._plan(command.ReproduceCommand(scale, Path("x"), teacher="elsewhere", seeds=1))
    lines = table_1(plan, TrickStudy(Path("x"), Sampling(8, "markov")))
    assert ("| + Guided Inference | 62.236 / 5.17 | 38.188 / 5.21 | " in "\n".join(lines)) == is_shown


def test_an_ablation_has_means_over_seeds_and_ratios_to_the_row_before():
    plan = command._plan(command.ReproduceCommand("markov", Path("x"), seeds=3))
    study = TrickStudy(Path("x"), Sampling(8, "markov"))
    lines = table_1(plan, study)
    start = next(i for i, line in enumerate(lines) if line.startswith("Perplexity divided by that of the row before"))
    mean = 100 * 0.64 * 1.03 / 8  # geometric
    (row,) = [line for line in lines[:start] if line.startswith("| + Coupled Time t |")]
    assert row.split("|")[4].strip().startswith(f"{mean:.2f} [")
    assert row.split("|")[4].strip().endswith("/ 3.98")
    (row,) = [line for line in lines[start:] if line.startswith("| + Coupled Time t |")]
    assert row.split("|")[2] == " 0.80 [0.80, 0.80] *lower* "
    assert [row.split("|")[i] for i in (-5, -3, -2)] == [" -0.010 ", " 0.15 ", " 0.34 "]
    (row,) = [line for line in table_2(plan, study)[start:] if line.startswith("| w/o Coupled Time t |")]
    assert row.split("|")[2] == " 1.25 [1.25, 1.25] *higher* "


def test_a_verdict_is_given_where_the_interval_excludes_one():
    assert ratio_cell([0.79, 0.8, 0.81]) == "0.80 [0.78, 0.83] *lower*"
    assert ratio_cell([1.19, 1.2, 1.21]) == "1.20 [1.18, 1.23] *higher*"
    assert ratio_cell([0.8, 1.1]) == "0.94 [0.12, 7.09]"
    assert ratio_cell([0.8]) == "0.80"
    assert ratio_cell([0.8, float("nan")]) == "–"


def test_rows_are_compared_with_the_teacher_at_equal_entropy():
    plan = command._plan(command.ReproduceCommand("markov", Path("x"), seeds=3))
    lines = table_1(plan, TrickStudy(Path("x"), Sampling(8, "markov")))
    start = next(i for i, line in enumerate(lines) if line.startswith("Perplexity divided by that of the row before"))
    (row,) = [line for line in lines[:start] if line.startswith("| teacher |")]
    assert row.split("|")[-2] == " 1.00 "
    (row,) = [line for line in lines[:start] if line.startswith("| + Coupled Time t |")]
    by_temperature = math.exp(-2 * 0.02)  # the teacher's perplexity falls by this factor for 0.02 nats less entropy
    assert row.split("|")[-2].startswith(f" {0.64 * 1.03 / by_temperature:.2f} [")
    (row,) = [line for line in lines[start:] if line.startswith("| + Coupled Time t |")]
    assert row.split("|")[-4] == f" {0.8 / math.exp(-2 * 0.01):.2f} [0.82, 0.82] *lower* "
