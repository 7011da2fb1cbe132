"""The table of evaluation rows in a terminal."""

import io
import math

from didi.apps.console import ResultConsole, print_rows
from didi.evaluation.row import EvaluationRow


def printed(*rows):
    """The lines of the table of these rows."""
    file = io.StringIO()
    print_rows(rows, title="judge j", console=ResultConsole(file=file, width=80))
    return file.getvalue().splitlines()


def make_row(role="autoregressive", sampler="ancestral", **settings):
    return EvaluationRow(
        role, sampler, 128, 8.0, 0.0, 64, "float64", "j", 18.2, (17.9, 18.5), 18.2, 4.0, (3.9, 4.1), 5.0, 7.0,
        0.9, 0.01, 12800.0, math.nan, 0, "2-core CPU", **settings,
    )  # fmt: skip


def labels(lines):
    """The text of the first column."""
    return " ".join(" ".join(line[:16] for line in lines).split())


def test_temperature_and_top_p_are_shown_within_80_columns():
    lines = printed(make_row(temperature=0.9, top_p=0.95), make_row("teacher"))
    assert max(map(len, lines)) <= 80
    assert "autoregressive, temperature 0.9, top-p 0.95" in labels(lines)
    assert any("18.20 [17.90, 18.50]" in line and "4.00 [3.90, 4.10]" in line for line in lines)


def test_samplers_are_named_where_they_differ():
    assert "ancestral" not in labels(printed(make_row(), make_row("teacher")))
    names = labels(printed(make_row("teacher"), make_row("teacher", "entropy-bounded")))
    assert "teacher, ancestral teacher, entropy-bounded" in names
