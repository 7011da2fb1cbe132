"""Exit status, messages and output streams of a command."""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from didi.apps.console import ResultConsole
from didi.apps.streams import json_line
from didi.apps.terminal import run
from didi.errors import DidiError, Diverged, Interrupted, UsageError
from didi.process_group import ProcessGroup


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
def test_each_error_has_its_status_and_one_line(error, status, capsys):
    def command():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("didi: ")


def test_an_error_of_the_compiler_is_reported_in_one_line(capsys):
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


@pytest.fixture
def second_process(monkeypatch):
    """Make this process the second of two that torchrun started."""

    @contextlib.contextmanager
    def joined():
        yield ProcessGroup(1, 2)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("didi.process_group.init_process_group", joined)


@pytest.mark.parametrize(
    ("error", "status", "err"),
    [
        (None, 0, ""),
        (UsageError("no"), 2, ""),
        (Interrupted("stopped"), 130, ""),
        (Diverged("nelbo is not finite"), 1, ""),
        (DidiError("the disk is full"), 1, "didi, process 1: the disk is full\n"),
    ],
    ids=str,
)
def test_only_the_first_process_writes_except_for_failures(second_process, error, status, err, capsys):
    def command():
        print("result")
        print("step 1/2", file=sys.stderr)
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == status
    assert capsys.readouterr() == ("", err)


class Closed(io.TextIOBase):
    """A stream that cannot be written, because its pipe is closed or its disk is full."""

    encoding = "utf-8"

    def __init__(self, number=errno.EPIPE):
        self.error = OSError(number, os.strerror(number))

    def write(self, _):
        raise self.error

    def flush(self):
        raise self.error


def status_of(command):
    with pytest.raises(SystemExit) as stop:
        run(command)
    return stop.value.code


def test_a_closed_pipe_is_reported_in_one_line_with_status_1(capsys):
    assert status_of(lambda: ResultConsole(file=Closed()).print("a table")) == 1
    assert capsys.readouterr().err == "didi: standard output was closed before all of it was written\n"


@pytest.mark.parametrize(("number", "message"), [(errno.EPIPE, "closed before all"), (errno.ENOSPC, "No space left")])
def test_output_that_is_lost_at_the_end_is_a_failure(monkeypatch, capsys, number, message):
    monkeypatch.setattr(sys, "stdout", Closed(number))
    assert status_of(lambda: None) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_command_continues_when_its_log_is_closed(monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "stderr", Closed(number))

    def command():
        for step in range(3):
            print(f"step {step}", file=sys.stderr, flush=True)
        print("the result")

    assert status_of(command) == 0
    assert capsys.readouterr().out == "the result\n"


def test_output_for_a_stream_that_was_closed_before_the_start_goes_to_no_other_stream(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", None)
    assert status_of(lambda: print("progress", file=sys.stderr)) == 0
    assert capfd.readouterr().out == ""  # print writes there if its file is None
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", None)
    assert status_of(lambda: print("the result")) == 1
    assert capfd.readouterr().err == "didi: Bad file descriptor\n"


def test_a_character_that_the_encoding_lacks_is_replaced(monkeypatch):
    files = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, file in files.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding="cp1252", errors="strict", write_through=True))

    def command():
        print("caf\u00e9 \u8a9e")
        print("\u8a9e", file=sys.stderr)
        ResultConsole(width=20).print("\u8a9e \u2500")

    assert status_of(command) == 0
    assert files["stdout"].getvalue().decode("cp1252").splitlines() == ["caf\u00e9 ?", "? ?"]
    assert files["stderr"].getvalue().decode("cp1252").splitlines() == ["?"]


@pytest.mark.parametrize(
    ("encoding", "is_escaped"), [("utf-8", False), ("UTF8", False), ("cp1252", True), (None, True)]
)
def test_json_lines_escape_what_the_encoding_may_lack(monkeypatch, encoding, is_escaped):
    class Stream(io.StringIO):
        pass

    Stream.encoding = encoding
    monkeypatch.setattr(sys, "stdout", Stream())
    record = {"text": "caf\u00e9 \u8a9e"}
    line = json_line(record)
    assert line.isascii() == is_escaped
    assert json.loads(line) == record
    assert json.loads(json_line({"text": "\udcff"}).encode()) == {"text": "\udcff"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"x": float("nan")})


def test_an_unexpected_error_is_reported_in_one_line_and_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def command():
        raise KeyError("a\nb")

    assert status_of(command) == 1
    out, err = capsys.readouterr()
    (log,) = tmp_path.iterdir()
    assert (out, err) == ("", f"didi: unexpected KeyError: 'a\\nb'; the traceback is in {log}: please report it\n")
    text = log.read_text()
    assert text.splitlines()[-1] == "KeyError: 'a\\nb'"
    assert Path(__file__).name in text
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert status_of(command) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "its traceback could not be written" in err


LIST = [sys.executable, "-c", "from didi.apps.cli import main; main()", "assets", "list"]


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


@pytest.mark.slow
def test_a_command_with_a_closed_pipe_ends_with_one_line_and_a_status():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(LIST, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(writer)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(LIST, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (1, "didi: No space left on device\n")
