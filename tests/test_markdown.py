"""Markdown tables, and tables whose columns are also aligned in the source text."""

import pytest

from didi.markdown import aligned_table, markdown_table


def test_a_table_has_a_header_alignments_and_a_line_for_each_row():
    assert markdown_table(["", "b", "c"], [["x", 1, 2.5], ["y", "", "–"]], num_left=2) == [
        "| | b | c |",
        "|---|---|--:|",
        "| x | 1 | 2.5 |",
        "| y | | – |",
    ]
    assert markdown_table(["a", "b", "c"], [], align="lrl")[1] == "|---|--:|---|"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"as many cells as there are columns \(2\); got 1"):
        markdown_table(["a", "b"], [["x"]])


def test_the_cells_of_a_column_of_an_aligned_table_have_one_width():
    assert aligned_table(["a", "long"], [["wide", "1"]]) == [
        "| a    | long |",
        "| ---- | ---: |",
        "| wide |    1 |",
    ]
