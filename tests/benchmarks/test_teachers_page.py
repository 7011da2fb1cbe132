"""``benchmarks/reproduce.py`` moves the sections on other teachers of a report to a separate page."""

import reproduce

TABLE = "## Table 7: zero-shot perplexity\n\n| news | 1 |\n\n### Other teachers\n\n| UDLM | 2 |\n"
FIGURE = "## Figure 1\n\ntext\n\n### Other teachers\n\n![Perplexity](figure1-teachers.png)\n"


def test_other_teachers_are_taken_out_under_the_headings_of_their_sections():
    own, taken = reproduce.without_teachers([TABLE, "## Table 1\n\ntext\n", FIGURE])
    assert own == [
        "## Table 7: zero-shot perplexity\n\n| news | 1 |\n",
        "## Table 1\n\ntext\n",
        "## Figure 1\n\ntext\n",
    ]
    assert [section.splitlines()[0] for section in taken] == ["## Table 7: zero-shot perplexity", "## Figure 1"]
    assert "| UDLM | 2 |" in taken[0]
    assert "figure1-teachers.png" in taken[1]
    assert reproduce.FIGURE.findall(FIGURE) == ["figure1-teachers.png"]
