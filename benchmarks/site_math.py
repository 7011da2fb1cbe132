r"""Formulas of docstrings on the site: ``:math:`` and ``.. math::`` become SVG images, since Markdown knows neither.

An extension of griffe, named in ``mkdocs.yml``. The images are drawn by matplotlib and have the colour of the text.
"""

import re
from html import escape
from typing import Any

import griffe
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath

SIZE = 12  # of the font, in units of the image
INLINE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +\S.*)*)", re.M)
LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
UNKNOWN = (
    (r"\\[bB]ig[lr]\b", ""),
    (r"\\tfrac\b", r"\\frac"),
    (r"\\frac(\w)(\w)", r"\\frac{\1}{\2}"),
    (r"\\([gl])e\b", r"\\\1eq"),
    (r"\\texttt\b", r"\\mathtt"),
)
"""Macros that matplotlib does not read, and what is drawn instead."""


def svg(formula: str) -> str:
    """An image of a formula in TeX, as high as a line of text of the same size."""
    tex = " ".join(formula.split())
    for pattern, replacement in UNKNOWN:
        tex = re.sub(pattern, replacement, tex)
    font = FontProperties(size=SIZE)
    width, height, depth, *_ = MathTextParser("path").parse(f"${tex}$", 72, font)
    parts = []
    for points, code in TextPath((0, 0), f"${tex}$", prop=font).iter_segments(curves=True, simplify=False):
        numbers = [] if code == Path.CLOSEPOLY else [f"{x:.1f}" for x in points * ([1, -1] * (len(points) // 2))]
        parts.append(LETTERS[code] + " ".join(numbers))
    total = height + depth
    style = f"height: {total / SIZE:.2f}em; vertical-align: {-depth / SIZE:.2f}em; overflow: visible"
    return (
        f'<svg role="img" aria-label="{escape(formula)}" viewBox="0 {-height:.1f} {width:.1f} {total:.1f}" '
        f'style="{style}" fill="currentColor"><path d="{"".join(parts)}"/></svg>'
    )


def with_images(text: str) -> str:
    """A docstring whose formulas are images."""
    text = BLOCK.sub(lambda match: f"{match[1]}<p>{svg(match[2])}</p>", text)
    return INLINE.sub(lambda match: svg(match[1]), text)


class MathImages(griffe.Extension):
    """Replaces the formulas of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object with its docstring."""
        if obj.docstring:
            obj.docstring.value = with_images(obj.docstring.value)
