"""Code blocks of the pages in ``docs/``, as modules."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page):
    """Python blocks of a page: by path where the line before names a file to write, else by their number."""
    found = re.findall(r"(?:^`([^`\n]+\.py)`:\n\n)?^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)
    return {path or number: code for number, (path, code) in enumerate(found)}


def module_from(code, path, monkeypatch, tmp_path):
    """The module that the page tells to write to ``path``, imported under the name that it has there."""
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
    return [one for name, one in vars(module).items() if name.startswith("test_")]
