"""``benchmarks/reproduce.py``: the parts of a report are written between the markers of their pages."""

import pytest
import reproduce

MARKERS = "written by hand\n<!-- written by benchmarks/reproduce.py page: begin -->\nstale\n<!-- end -->\n"
TITLE = "# didi reproduce --scale markov\n\nConditions.\n"
TABLE = "\n## Table 1: cumulative ablation\n\n| a |\n"
FIGURE = "\n## Figure 1: perplexity against passes\n\n![Perplexity](figure1.png)\n"
DECISIONS = "\n## Our decisions\n\n| b |\n"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Folder of the pages."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("reproduce-markov", "decisions"):
        (folder / f"{name}.md").write_text(MARKERS)
    monkeypatch.setattr(reproduce, "RESULTS", folder)
    (tmp_path / "figure1.png").write_bytes(b"a figure")
    return folder


def test_the_parts_of_a_report_are_written_to_their_pages(results, tmp_path):
    (tmp_path / "report.md").write_text(TITLE + TABLE + FIGURE + DECISIONS)
    reproduce.main(["markov", str(tmp_path)])
    page, decisions = ((results / f"{name}.md").read_text() for name in ("reproduce-markov", "decisions"))
    for text in (page, decisions):
        assert text.startswith("written by hand\n")
        assert text.endswith("<!-- end -->\n")
        assert text.count("Conditions.") == 1
        assert "stale" not in text
    assert "| a |" in page
    assert "![Perplexity](reproduce-markov-figure1.png)" in page
    assert "| b |" not in page
    assert "| b |" in decisions
    assert "| a |" not in decisions
    assert (results / "reproduce-markov-figure1.png").read_bytes() == b"a figure"


@pytest.mark.parametrize(("part", "renewed"), [(TABLE, "reproduce-markov"), (DECISIONS, "decisions")])
def test_a_page_whose_part_the_report_lacks_is_unchanged(part, renewed, results, tmp_path):
    (tmp_path / "report.md").write_text(TITLE + part)
    reproduce.main(["markov", str(tmp_path)])
    for name in ("reproduce-markov", "decisions"):
        assert ("stale" in (results / f"{name}.md").read_text()) == (name != renewed)


def test_a_comparison_of_methods_has_its_own_part_of_a_page(results, tmp_path):
    marked = [MARKERS.replace("reproduce.py page", f"reproduce.py {scale} page") for scale in ("exact", "markov")]
    (results / "methods.md").write_text("".join(marked))
    (tmp_path / "figure1-methods.png").write_bytes(b"another figure")
    (tmp_path / "report.md").write_text(TITLE + FIGURE.replace("figure1", "figure1-methods") + TABLE)
    reproduce.main(["markov", str(tmp_path), "--methods"])
    of_exact, of_markov = (results / "methods.md").read_text().split("<!-- end -->\n")[:2]
    assert "stale" in of_exact
    assert "stale" not in of_markov
    assert of_markov.index("Conditions.") < of_markov.index("### Figure 1") < of_markov.index("### Table 1")
    assert "![Perplexity](reproduce-markov-figure1-methods.png)" in of_markov
    assert (results / "reproduce-markov-figure1-methods.png").read_bytes() == b"another figure"
    assert "stale" in (results / "reproduce-markov.md").read_text()
