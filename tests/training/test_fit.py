"""The length of a run that fits a time; the clock is a fake, so that nothing here depends on the machine."""

import itertools
from dataclasses import replace

import pytest
import torch

from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.training import fit

from ..two_moves import MARKOV

CPU = torch.device("cpu")


@pytest.fixture
def fitted_steps(source, teacher, monkeypatch):
    """Steps of the student for a number of minutes, where each reading of the clock is 8 seconds after the last."""

    def steps(minutes, **phases):
        base = MARKOV
        loop = replace(base.loop, steps=100, batch_size=2, validate_every=1000, validation_sequences=2)
        settings = replace(
            base,
            data=replace(base.data, length=8),
            loop=loop,
            discriminator=replace(base.discriminator, warmup_steps=phases.get("warmup", 0), guidance_steps=0),
        )
        monkeypatch.setattr(fit.time, "perf_counter", map(float, itertools.count(0, 8)).__next__)
        return fit.fitted(settings, Inputs(source, CPU, teacher=teacher), minutes).loop.steps

    return steps


def test_as_many_steps_as_the_time_allows(fitted_steps):
    # Eight steps take 8 s, so one takes 1 s; the validation takes 8 s, and 95% of the time is planned.
    assert fitted_steps(1.0) == 57 - 8
    assert fitted_steps(0.5) == 28 - 8
    assert fitted_steps(60.0) == 100  # never longer than the recipe


def test_the_warm_up_is_part_of_the_time_and_is_cut_with_the_run(fitted_steps):
    assert fitted_steps(1.0, warmup=20) == 57 - 8 - 20
    assert fitted_steps(0.5, warmup=20) == (28 - 8) // 2


def test_a_time_in_which_nothing_fits_is_refused(fitted_steps):
    with pytest.raises(
        UsageError, match=r"max-minutes fits one step or more; a step takes 1\.0 s and a validation 8\.0 s"
    ):
        fitted_steps(0.1)
    with pytest.raises(UsageError, match="max-minutes is positive; got nan"):
        fitted_steps(float("nan"))
