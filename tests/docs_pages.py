"""The documentation pages, and the code blocks and commands in them."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(ROOT.glob("src/didi/bundles/*/README.md")),
]
START = r"(torchrun .*-m )?didi [a-z]"
"""Beginning of a command ``didi``."""
USAGE = re.compile(r"\[(?!MASK)|\.\.\.|\b(RECIPE|NAME|LAYOUT|SRC|M|N|K)\b")
"""Pattern of optional arguments or a placeholder; a command that has them shows the usage and cannot be run."""
REPORTS = re.compile(r"<!-- written by benchmarks/reports.py.*?<!-- end -->", re.S)  # quotes commands that are refused
CODE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$|`([^`\n]+)`", re.M | re.S)


def commands(file, start):
    """Commands of a page that begin with ``start``, in blocks other than Python and in text.

    Returns:
        The commands in their order, each with whether it is in a block.
    """
    lines = []
    for language, block, inline in CODE.findall(REPORTS.sub("", file.read_text()).replace("\\\n", " ")):
        parts = block.splitlines() if block and language != "python" else [inline]
        lines += [(line.strip().removeprefix("$ "), bool(block)) for line in parts]
    return [(line, is_in_block) for line, is_in_block in lines if re.match(start, line)]


def blocks(page):
    """Python blocks of a page by the path of the file in the line before, if there is one, else by their number."""
    matches = re.findall(r"(?:^`([^`\n]+\.py)`:\n\n)?^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)
    return {path or number: code for number, (path, code) in enumerate(matches)}


def module_from(code, path, monkeypatch, tmp_path):
    """Write ``code`` to a temporary file and import it under the module name that ``path`` has in the page."""
    *_, package, file = Path(path).parts
    (tmp_path / file).write_text(code)
    name = f"didi.{package}.{Path(file).stem}" if path.startswith("src/") else Path(file).stem
    spec = spec_from_file_location(name, tmp_path / file)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def functions_of(module):
    """The tests of a module, which take no fixtures."""
    return [test for name, test in vars(module).items() if name.startswith("test_")]
