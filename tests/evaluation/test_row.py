"""Rows of an evaluation: records of older files, and labels in tables and legends."""

import math
from dataclasses import replace

import pytest

from didi.evaluation.figure import frontier_figure, perplexity_figure
from didi.evaluation.row import DETAILS, EvaluationRow

ROW = EvaluationRow(
    "student", "guided", 8, 8.0, 4.0, 64, "float64", "gpt2", 100.0, (90.0, 110.0), 100.0, 4.0, (3.9, 4.1), 5.0, 7.0,
    0.9, 0.01, 12800.0, math.nan, 0, "2-core CPU",
)  # fmt: skip


def test_rows_of_older_files_are_read():
    record = ROW.record()
    older = {"student_passes" if name == "network_passes" else name: value for name, value in record.items()}
    assert EvaluationRow.from_record(older).network_passes == 8.0
    assert EvaluationRow.from_record(older).record() == record


@pytest.mark.parametrize(
    ("changed", "options", "label"),
    [
        ({}, {}, "student, guided, 8 NFE"),
        ({"temperature": 0.9}, {}, "student, guided, 8 NFE, temperature 0.9"),
        ({"top_p": 0.95}, {"omit": ("sampler", "nfe")}, "student, top-p 0.95"),
        ({"temperature": 0.9, "top_p": 0.5}, {"omit": ("temperature",)}, "student, guided, 8 NFE, top-p 0.5"),
        ({"role": "data", "sampler": "", "nfe": 0}, {}, "data"),
        ({"role": "data", "sampler": "", "nfe": 0}, {"also": ("judge",)}, "data, judge gpt2"),
        (
            {},
            {"omit": ("role",), "also": DETAILS},
            "guided, 8 NFE, judge gpt2, float64, uniform time grid, 64 samples, seed 0",
        ),
    ],
)
def test_a_label_names_the_row_and_the_settings_that_change_its_distribution(changed, options, label):
    assert replace(ROW, **changed).label(**options) == label


@pytest.fixture
def legends(monkeypatch):
    """A list to which each drawn figure appends the labels of its legend."""
    from matplotlib.figure import Figure

    labels = []
    draw = Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *args, **options: labels.append(args[2]) or draw(*args, **options))
    return labels


@pytest.mark.slow
def test_lines_of_a_figure_have_distinct_labels(legends, tmp_path):
    data = replace(ROW, role="data", sampler="", nfe=0)
    rows = [replace(ROW, **changed) for changed in ({}, {"nfe": 4}, {"top_p": 0.9}, {"temperature": 0.8})]
    perplexity_figure([data, *rows], tmp_path / "a.png")
    assert legends.pop() == [
        "student, guided",
        *("student, guided, top-p 0.9", "student, guided, temperature 0.8"),
        "data",
    ]
    other = [replace(row, judge="two") for row in (data, ROW)]
    perplexity_figure([data, ROW, *other], tmp_path / "b.png")
    assert legends.pop() == [
        *("student, guided, judge gpt2", "student, guided, judge two"),
        *("data, judge gpt2", "data, judge two"),
    ]
    frontier_figure([ROW, other[1]], tmp_path / "c.png")
    assert legends.pop() == ["student, guided, 8 NFE, judge gpt2", "student, guided, 8 NFE, judge two"]
