import contextlib
import io
import sys

import pytest

from didi.apps.console import ResultConsole
from didi.apps.terminal import run
from didi.errors import DidiError, Diverged, Interrupted, UsageError
from didi.world import World


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("no"), 2),
        (FileExistsError(17, "File exists", "out"), 2),
        (DidiError("no"), 1),
        (OSError(28, "No space left on device", "out"), 1),
        (Interrupted("stopped"), 130),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_end_has_its_status_and_one_line(error, status, capsys):
    def command():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("didi: ")


def test_a_compiler_that_fails_is_one_line(capsys):
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    for error, reason in ((InvalidCxxCompiler(), "No working C++ compiler"), (CppCompileError(["g++"], "no"), "error")):

        def command(error=error):
            raise error

        with pytest.raises(SystemExit) as stop:
            run(command)
        err = capsys.readouterr().err
        assert (stop.value.code, err.count("\n")) == (1, 1)
        assert err.startswith("didi: torch.compile failed (")
        assert reason in err
        assert "install a C++ compiler, set CXX to one, or leave compile out" in err


def test_a_fault_of_ours_keeps_its_traceback():
    def command():
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run(command)


@pytest.fixture
def second(monkeypatch):
    """This process is the second of two that torchrun started."""

    @contextlib.contextmanager
    def joined():
        yield World(1, 2)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("didi.world.joined", joined)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (UsageError("no"), 2, ""),
        (Interrupted("stopped"), 130, ""),
        (Diverged("nelbo is not finite"), 1, ""),
        (DidiError("the disk is full"), 1, "didi, process 1: the disk is full\n"),
    ],
    ids=str,
)
def test_of_several_processes_the_first_speaks(second, error, status, said, capsys):
    def command():
        print("result")
        print("step 1/2", file=sys.stderr)
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == status
    assert capsys.readouterr() == ("", said)


class Closed:
    """A pipe whose reader has left."""

    encoding = "utf-8"

    def write(self, _):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_reader_that_has_left_is_no_failure(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # run closes it
    with pytest.raises(SystemExit) as stop:
        run(lambda: ResultConsole(file=Closed()).print("a table"))
    assert stop.value.code == 0
