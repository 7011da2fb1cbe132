"""Fixtures of the tests of the command line."""

import sys

import pytest

from didi.apps.cli import main

SMALL = ["--data.length", "32", "--loop.batch-size", "4", "--loop.validation-sequences", "8"]


@pytest.fixture
def didi(monkeypatch, capsys):
    """Function that runs the command in this process and returns (status, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["didi", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return stop.value.code, out.out, out.err

    return call


@pytest.fixture(scope="session")
def distilled(tmp_path_factory):
    """Folder of a distillation of three steps from the bundled teacher ``markov``."""
    folder = tmp_path_factory.mktemp("run")
    argv, sys.argv = sys.argv, ["didi", "distill", "markov", "--out", str(folder / "a"), "--max-steps", "3", *SMALL]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = argv
    assert stop.value.code == 0
    return folder / "a"
