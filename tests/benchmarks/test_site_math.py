"""Formulas of docstrings become images on the site, and all formulas of the package can be drawn."""

import ast
from pathlib import Path

import pytest
import site_math

import didi


def docstrings():
    """All docstrings of the package."""
    for path in sorted(Path(didi.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                yield ast.get_docstring(node) or ""


def test_formulas_in_a_text_and_between_paragraphs_become_images():
    text = "Rate :math:`\\alpha_t`.\n\n.. math:: \\frac1K\n    + x\n\nNext."
    html = site_math.with_images(text)
    assert html.count("<svg") == 2
    assert "math" not in html
    assert 'aria-label="\\alpha_t"' in html
    assert html.endswith("</p>\n\nNext.")


def test_a_formula_that_cannot_be_drawn_is_an_error():
    with pytest.raises(ValueError, match="nonsense"):
        site_math.svg(r"\nonsense")


@pytest.mark.slow
def test_every_formula_of_the_package_can_be_drawn():
    texts = [site_math.with_images(text) for text in docstrings()]
    assert sum(text.count("<svg") for text in texts) > 100
    assert not [text for text in texts if ":math:" in text or ".. math::" in text]
