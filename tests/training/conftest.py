"""Fixtures of the training tests: a source, a teacher, short distillations, and checks of resumed runs."""

import copy
import json
import os
import signal

import pytest
import torch

from didi.data.source import MarkovSource
from didi.methods.base import Inputs
from didi.models.bundle import Bundle
from didi.training.loop import Interrupted, RunFolder, run
from didi.training.trainer import make_trainer

from .distill_case import CONFIG, CPU

LENGTH = 8


@pytest.fixture(scope="session")
def source():
    return MarkovSource(LENGTH, seed=0)


@pytest.fixture(scope="session")
def teacher(make_dit):
    """A random masked teacher for the 32 symbols of the Markov chain."""
    return Bundle(teacher=make_dit(vocab_size=33, length=LENGTH, seed=1))


@pytest.fixture
def make_job(source, teacher, tmp_path):
    """Function that makes a distillation of a few steps."""

    def make(config=CONFIG, folder=tmp_path, bundle=teacher):
        return make_trainer(config, Inputs(source, CPU, folder, bundle))

    return make


@pytest.fixture(scope="session")
def assert_same_state():
    """Function that asserts that two nested states are equal bit for bit."""

    def check(first, second):
        if isinstance(first, dict):
            assert list(first) == list(second)
            for key in first:
                check(first[key], second[key])
        elif isinstance(first, list | tuple):
            assert len(first) == len(second)
            for first_item, second_item in zip(first, second, strict=True):
                check(first_item, second_item)
        elif isinstance(first, torch.Tensor):
            assert torch.equal(first, second)
        else:
            assert first == second

    return check


@pytest.fixture
def assert_resumes_exactly(tmp_path, assert_same_state):
    """Function that asserts that a run that is resumed by a new job ends in the same state as an uninterrupted run.

    Its arguments: a function that makes a job for a folder, the ``LoopConfig``, and the step with the signal to stop.
    """

    def metric_rows(folder):
        rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        # Times differ; a resumed run also repeats passes whose results were cached.
        varying = ("tokens_per_second", "sequence_passes")
        return [{key: value for key, value in row.items() if key not in varying} for row in rows]

    def check(make_job, config, stop_in):
        whole_folder, stopped_folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
        whole, stopped = make_job(whole_folder.path), make_job(stopped_folder.path)
        for folder in (whole_folder, stopped_folder):
            folder.prepare("", resume=False)
        start = copy.deepcopy(whole.state_dict()["average"]["weights"])
        run(whole, config, whole_folder, resume=False)
        assert any(
            not torch.equal(value, start[name]) for name, value in whole.state_dict()["average"]["weights"].items()
        )

        step = stopped.step

        def step_and_signal(number):
            if number == stop_in:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(number)

        stopped.step = step_and_signal
        with pytest.raises(Interrupted):
            run(stopped, config, stopped_folder, resume=False)
        torch.manual_seed(999)  # the global generator of a new process has another state
        resumed = make_job(stopped_folder.path)
        run(resumed, config, stopped_folder, resume=True)
        assert_same_state(resumed.state_dict(), whole.state_dict())
        assert metric_rows(stopped_folder) == metric_rows(whole_folder)

    return check
