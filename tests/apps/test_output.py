"""Results are written to files before they are printed, since standard output may be a closed pipe."""

import errno
import io
import multiprocessing
import os
import signal
import sys

import pytest

from didi.apps.cli import main
from didi.apps.reproduce import workers
from didi.models.bundle import load

SMALL = ["--data.length", "32", "--loop.batch-size", "4", "--loop.validation-sequences", "8"]


class ClosedPipe(io.TextIOBase):
    """A stream to a closed pipe."""

    encoding = "utf-8"

    def write(self, _):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def flush(self):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.fixture
def with_closed_pipe(monkeypatch):
    """Function that runs a command whose standard output, or other streams, are closed pipes; returns its status."""

    def call(*words, streams=("stdout",)):
        monkeypatch.setattr(sys, "argv", ["didi", *map(str, words)])
        for name in streams:
            monkeypatch.setattr(sys, name, ClosedPipe())
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code

    return call


BENCH = ["bench", "--model", "markov", "--random", "--batch-size", "1", "--nfe", "1", "--rounds", "1", "--no-memory"]
LIKELIHOOD = ["likelihood", "--model", "exact", "--num-sequences", "2", "--num-draws", "1"]
EVALUATE = ["evaluate", "--model", "markov", "--num-samples", "2", "--nfe", "1", "--judge", "markov"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "files"),
    [
        ([*BENCH, "--methods", "trunk"], {"bench.json", "bench.md"}),
        (LIKELIHOOD, {"likelihood.json", "likelihood.md"}),
        (EVALUATE, {"metrics.json", "report.md", "samples.jsonl"}),
    ],
    ids=["bench", "likelihood", "evaluate"],
)
def test_files_are_written_before_the_table(with_closed_pipe, capsys, tmp_path, words, files):
    assert with_closed_pipe(*words, "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("didi: standard output was closed before")
    assert files <= {file.name for file in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_a_training_continues_when_its_log_is_closed(with_closed_pipe, tmp_path):
    words = ["pretrain", "markov", "--out", tmp_path / "run", "--max-steps", "3", "--loop.log-every", "1", *SMALL]
    assert with_closed_pipe(*words, streams=("stdout", "stderr")) == 1
    assert load(tmp_path / "run" / "bundle").teacher is not None
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 3


def test_a_worker_of_a_study_continues_when_its_log_is_closed(monkeypatch):
    monkeypatch.setattr(workers, "end_with_parent", lambda: None)
    monkeypatch.setattr(workers, "_stop", None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stderr", ClosedPipe())
    workers._begin(multiprocessing.get_context("spawn").Event())
    print("step 1", file=sys.stderr, flush=True)
