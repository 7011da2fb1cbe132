"""All cells of the notebook in examples/."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def cells():
    """The code cells of the notebook, executed."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [one for one in notebook.cells if one.get("outputs")], "a notebook is stored without outputs"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return [one for one in notebook.cells if one.cell_type == "code"]


def printed(cell):
    return "".join(one["text"] for one in cell.outputs if one.output_type == "stream" and one["name"] == "stdout")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of jupyter's packages
def test_the_notebook_shows_what_it_says(cells):
    _, samples, race, figures, infilling = cells
    assert not [one for cell in cells for one in cell.outputs if one.output_type == "error"]
    texts = printed(samples)
    assert re.findall(r"(\w+), (\d+) moves, \d+ passes:\nThe prime minister said", texts) == [
        ("teacher", "8"), ("student", "8"), ("teacher", "64"),
    ]  # fmt: skip
    (shown,) = [one["data"]["text/html"] for one in race.outputs if one.output_type == "execute_result"]
    assert "srcdoc=" in shown
    assert "&quot;lanes&quot;" in shown
    table = {
        (role, int(nfe)): float(kl)
        for role, nfe, kl in re.findall(r"(teacher|student) +(\d+) +([\d.]+)", printed(figures))
    }
    assert set(table) == {("teacher", 4), ("teacher", 24), ("student", 4), ("student", 24)}
    assert table["student", 4] < table["teacher", 24] < table["teacher", 4]
    lines = printed(infilling).splitlines()
    assert len(lines) == 3
    assert all("[MASK]" not in line and "that the vote would be held in" in line for line in lines)


def test_pages_that_the_notebook_links_exist():
    links = re.findall(r"\]\((\.\./[^)#]+)", NOTEBOOK.read_text())
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)
