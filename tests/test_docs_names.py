"""Dotted names, file paths and the tests of the paper map exist."""

import ast
import re
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest

from .docs_pages import DOCS, PAGES, ROOT

PACKAGES = sorted(path.parent.name for path in (ROOT / "src" / "didi").glob("*/__init__.py"))
MODULES = sorted(path.stem for path in (ROOT / "src" / "didi").glob("*.py") if not path.stem.startswith("_"))
WRITTEN_BY_A_READER = {"methods/kd.py", "training/test_kd.py", "sampling/even.py", "sampling/test_even.py", "NAME.py"}
PATH = re.compile(r"(?:src|tests|benchmarks|docs|didi|[a-z_]+)/[\w/.-]+\.(?:py|md|json|png|svg|yaml)|\btest_\w+\.py")


def spans(page):
    """Inline code of a page, outside of blocks."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


def resolved(name):
    """Whether ``didi.package.module.attribute`` exists; fields of dataclasses and protocols count."""
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        owner, _, field = name.rpartition(".")
        try:
            return field in getattr(resolve_name(owner), "__annotations__", {})
        except (ImportError, AttributeError, ValueError):
            return False
    return True


def functions(path):
    """Names of the functions of a test file."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_dotted_names_resolve(page):
    names = set()
    for span in spans(page):
        for name in re.findall(r"[A-Za-z_][\w.]*\.\w+", span):
            head, *_ = name.removeprefix("didi.").split(".")
            if name.startswith("didi.") or (head in PACKAGES and find_spec(".".join(["didi", *name.split(".")[:2]]))):
                names.add(f"didi.{name.removeprefix('didi.')}")
    assert not {name for name in names if not resolved(name)}


@pytest.mark.slow
def test_every_name_of_the_paper_map_resolves():
    text = (DOCS / "paper-map.md").read_text()
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("|") and "`" in line]
    assert len(rows) > 30
    for paper, code, tests in rows:
        owner = ""  # package of the previous name, which a name without a package shares
        for name in re.findall(r"`([\w.]+)`", code):
            dotted = f"didi.{name}" if name.split(".")[0] in PACKAGES + MODULES else f"{owner}.{name}"
            assert resolved(dotted), (paper, name)
            owner = dotted.rpartition(".")[0]
        files = []
        for file, function in re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(\w*)`", tests):
            files = list((ROOT / "tests").rglob(file)) if file else files
            assert files, (paper, file)
            assert not function or any(function in functions(path) for path in files), (paper, function)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_exist(page):
    missing = set()
    for span in spans(page):
        for path in PATH.findall(span):
            name = path.removeprefix("didi/") if path.startswith("didi/") else path
            places = [ROOT / name, ROOT / "src" / "didi" / name, DOCS / name]
            if not any(place.exists() for place in places) and not any((ROOT / "tests").rglob(name)):
                missing.add(path)
    assert not {path for path in missing if not any(path.endswith(name) for name in WRITTEN_BY_A_READER)}
