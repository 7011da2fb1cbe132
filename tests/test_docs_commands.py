"""The parser accepts every command on the pages; make targets, settings and arguments of scripts exist."""

import argparse
import contextlib
import importlib.util
import re
import shlex
import sys
from dataclasses import fields, is_dataclass

import pytest
import tyro

import didi
from didi.apps import assets, cli
from didi.apps.reproduce.command import METHOD_TARGETS, ReproduceCommand, targets_of
from didi.apps.reproduce.proteins import PROTEIN_TARGETS
from didi.evaluation.judges import JUDGES
from didi.methods import METHODS
from didi.models.bundle import bundled_names
from didi.recipes import teacher_names
from didi.sampling.options import DEFAULT_SAMPLER
from didi.sampling.registry import SAMPLERS

from .docs_pages import DOCS, PAGES, ROOT, START, USAGE, blocks, commands

BENCHMARKS = ROOT / "benchmarks"
ADDED_BY_A_READER = {"add-a-method.md", "add-a-sampler.md"}  # their commands need code that the pages add
FILES = [file for file in PAGES if file.name not in ADDED_BY_A_READER]
HUB_MODELS = {"gpt2-large", "owner/repository"}


class Parsed(Exception):
    """Raised when arguments were accepted; holds the parsed command."""


def shown(start, *, inline=True):
    """Commands on the pages that begin with ``start``, in blocks other than Python and, with ``inline``, in text."""
    lines = [pair for file in FILES for pair in commands(file, start)]
    return sorted({line for line, is_in_block in lines if is_in_block or inline})


def words_of(line):
    return [word.lower() if word.isupper() else word for word in shlex.split(line, comments=True)]


def didi_words(line):
    """The arguments after ``didi``."""
    words = words_of(line)
    return words[words.index("didi") + 1 :]


DIDI, IN_BLOCKS = shown(START), shown(START, inline=False)
COMMANDS = [line for line in DIDI if len(didi_words(line)) > 1 and not USAGE.search(line.partition("  #")[0])]
SCRIPTS = shown(r"(\S*/)?python benchmarks/")


def parse_only(monkeypatch):
    """Make commands stop after parsing their flags; ``assets``, which parses none, fetches and verifies nothing."""

    def parsed(*args, real=tyro.cli, **kwargs):
        raise Parsed(real(*args, **kwargs))

    monkeypatch.setattr(tyro, "cli", parsed)
    for name in ("fetch", "verify"):
        monkeypatch.setattr(assets, name, lambda _: None)


def accepted(words):
    """The parsed command of arguments, without running it; None for a command without flags."""
    try:
        cli._dispatch(words)
    except Parsed as parsed:
        return parsed.args[0]
    return None


def check(command, words):
    """Check that the names in a command exist."""
    if model := getattr(command, "model", None):
        shapes = teacher_names() if words[0] == "bench" else []  # random weights
        assert model in {*bundled_names(), *HUB_MODELS, *shapes} or "/" in model, model
    for judge in getattr(command, "judge", ()):
        assert judge in {*JUDGES, *HUB_MODELS, "exact"}, judge
    sampler = getattr(command, "sampler", ())
    assert {*([sampler] if isinstance(sampler, str) else sampler)} <= {*SAMPLERS, DEFAULT_SAMPLER}
    if isinstance(command, ReproduceCommand):
        targets = words[1 : words.index("--scale")]
        assert targets
        is_protein = command.scale == "proteins"
        known = PROTEIN_TARGETS if is_protein else METHOD_TARGETS if command.methods else targets_of(command.scale)
        assert {*targets} <= {*known, "all"}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line, monkeypatch):
    parse_only(monkeypatch)
    words = didi_words(line)
    if line in IN_BLOCKS:
        check(accepted(words), words)
        return
    with contextlib.suppress(didi.UsageError):  # inline code may leave out required arguments
        check(accepted(words), words)
        return
    with pytest.raises(didi.UsageError, match=r" needs --|takes a bundle next"):
        accepted(words)


def test_the_pages_show_commands_of_every_kind():
    assert len(COMMANDS) > 50
    assert {didi_words(line)[0] for line in DIDI} == {*cli.COMMANDS} - {"demo"}  # `make demo`


@pytest.mark.parametrize(
    "words", [["evaluate", "student/bundle", "--out", "x"], ["generate", "--model", "x", "--nfee", "8"]]
)
def test_a_wrong_command_is_refused(words, monkeypatch):
    parse_only(monkeypatch)
    with pytest.raises(didi.UsageError):
        accepted(words)


def test_the_check_of_names_refuses_a_name_that_does_not_exist(monkeypatch):
    parse_only(monkeypatch)
    for words in (["generate", "--model", "tiny-new"], ["generate", "--model", "exact", "--sampler", "x"]):
        with pytest.raises((AssertionError, didi.UsageError)):
            check(accepted(words), words)


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts_take_their_arguments(line, monkeypatch):
    words = words_of(line)
    script, *given = words[words.index(next(word for word in words if word.endswith(".py"))) :]
    if script.endswith("coverage.py"):
        assert (ROOT / script).is_file()
        assert not given
        return
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setattr(sys, "argv", [script, *given])

    def parsed(parser, words=None, real=argparse.ArgumentParser.parse_args):
        raise Parsed(real(parser, words))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    spec = importlib.util.spec_from_file_location("script_on_a_page", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(Parsed):
        module.main()


def test_make_targets_exist():
    targets = {*re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M)}
    named = {words_of(line)[1] for line in shown(r"make [a-z]")}
    assert named >= {"demo", "test", "check", "mutants"}
    assert named <= targets


def settings(kind, prefix=""):
    """Dotted names of the fields of a settings record, and of the records in it."""
    for field in fields(kind):
        yield prefix + field.name
        value = field.default_factory() if callable(field.default_factory) else field.default
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")


def test_settings_on_the_pages_exist():
    known = {name for method in METHODS.values() for name in settings(method.settings_type())}
    groups = {name.partition(".")[0] for name in known if "." in name}
    named = set()
    for file in FILES:
        for flag, name in re.findall(
            r"(?<![\w.])(--)?([a-z][\w-]*\.(?:no[-_])?[a-z][\w-]*)\b(?!\.|/|\()", file.read_text()
        ):
            name = name.replace("-", "_").replace(".no_", ".") if flag else name
            if name.partition(".")[0] in groups - {"data"} and not name.endswith((".py", ".safetensors")):
                named.add(name)
    assert len(named) > 20
    assert named <= known, named - known


@pytest.mark.slow
def test_the_python_of_the_readme_runs(monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    for old, new in (
        ('"tiny-news"', '"markov"'),
        ("256", "4"),
        ('"smollm2-135m"', '"markov"'),
        ('"The prime minister"', '"s1"'),
    ):
        assert old in code
        code = code.replace(old, new)
    exec(code, {})


@pytest.mark.parametrize("page", sorted(file.name for file in DOCS.glob("*.md") if file.name not in ADDED_BY_A_READER))
def test_python_blocks_of_a_page_compile(page):
    for code in blocks(page).values():
        compile(code, page, "exec")
