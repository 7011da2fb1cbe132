"""Hooks of mkdocs, named in ``mkdocs.yml``: the start page is the README, and intervals in tables do not break."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!docs/|https?:|#)([^)]*)\)")
"""A link to a file outside ``docs/``."""
CELL = re.compile(r"(?<=<td)[^>]*>.*?(?=</td>)", re.S)
INTERVAL = re.compile(r"\[[−-]?[\d.,]+%?, [−-]?[\d.,]+%?\]")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; that of ``docs/index.md`` is the README, whose links start at ``docs/``."""
    if page.file.src_uri != "index.md":
        return markdown
    text = README.read_text("utf-8").replace("](CONTRIBUTING.md", "](docs/contributing.md")
    return LINK.sub(r"\1 (`\2`)", text).replace("](docs/", "](")


def on_page_content(html: str, **_: Any) -> str:
    """The HTML of a page, with a mark around each interval in a cell: a line breaks only before the mark."""
    return CELL.sub(lambda cell: INTERVAL.sub(r'<span class="interval">\g<0></span>', cell[0]), html)
