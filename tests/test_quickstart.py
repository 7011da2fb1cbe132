"""The notebook in examples/ runs, and its outputs and links are as its text says."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def cells():
    """The code cells of the notebook, executed."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "a notebook is stored without outputs"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    """Text that a cell wrote to stdout."""
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    return "".join(output["text"] for output in streams if output["name"] == "stdout")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of Jupyter's packages
def test_the_outputs_of_the_notebook_are_as_its_text_says(cells):
    _, samples, race, figures, infilling = cells
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    texts = printed(samples)
    assert re.findall(r"(\w+), (\d+) moves, \d+ passes:\nThe prime minister said", texts) == [
        ("teacher", "8"), ("student", "8"), ("teacher", "64"),
    ]  # fmt: skip
    (html,) = [output["data"]["text/html"] for output in race.outputs if output.output_type == "execute_result"]
    assert "srcdoc=" in html
    assert "&quot;lanes&quot;" in html
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
