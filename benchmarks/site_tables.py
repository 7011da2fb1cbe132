"""Intervals in tables of the site stay on one line: a cell breaks only between a value and its interval.

A hook of mkdocs, named in ``mkdocs.yml``.
"""

import re
from typing import Any

CELL = re.compile(r"(?<=<td)[^>]*>.*?(?=</td>)", re.S)
INTERVAL = re.compile(r"\[[−-]?[\d.,]+%?, [−-]?[\d.,]+%?\]")


def on_page_content(html: str, **_: Any) -> str:
    """Called for each page with its text as HTML."""
    return CELL.sub(lambda cell: INTERVAL.sub(r'<span class="interval">\g<0></span>', cell[0]), html)
