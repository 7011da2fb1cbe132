"""The length of a run for a given time or number of passes; the clock is fake, so that tests are deterministic."""

import itertools
from dataclasses import replace

import pytest
import torch

from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.training import fit
from didi.training.trainer import make_trainer

from ..two_moves import MARKOV

CPU = torch.device("cpu")


@pytest.fixture
def fitted_steps(source, teacher, monkeypatch):
    """Function with the steps of the student for a number of minutes; every call of the fake clock adds 8 seconds."""

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
        return fit.fitted_to_minutes(settings, Inputs(source, CPU, teacher=teacher), minutes).loop.steps

    return steps


@pytest.mark.slow
def test_a_run_has_as_many_steps_as_the_time_allows(fitted_steps):
    # Eight steps take 8 s, so one takes 1 s; the validation takes 8 s, and 95% of the time is planned.
    assert fitted_steps(1.0) == 57 - 8
    assert fitted_steps(0.5) == 28 - 8
    assert fitted_steps(60.0) == 100  # never longer than the recipe


@pytest.mark.slow
def test_the_warm_up_is_part_of_the_time_and_is_shortened_with_the_run(fitted_steps):
    assert fitted_steps(1.0, warmup=20) == 57 - 8 - 20
    assert fitted_steps(0.5, warmup=20) == (28 - 8) // 2


def test_a_time_shorter_than_one_step_is_refused(fitted_steps):
    with pytest.raises(
        UsageError, match=r"max-minutes fits one step or more; a step takes 1\.0 s and a validation 8\.0 s"
    ):
        fitted_steps(0.1)
    with pytest.raises(UsageError, match="max-minutes is positive; got nan"):
        fitted_steps(float("nan"))


def passes_of(settings, inputs):
    trainer = make_trainer(settings, inputs)
    return sum(trainer.step(step)["sequence_passes"] for step in range(trainer.num_steps))


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0, 20])
def test_a_run_has_as_many_steps_as_the_passes_allow(source, teacher, warmup):
    settings = replace(
        MARKOV,
        data=replace(MARKOV.data, length=8),
        loop=replace(MARKOV.loop, steps=100, batch_size=2),
        discriminator=replace(MARKOV.discriminator, warmup_steps=warmup, guidance_steps=3),
    )
    inputs = Inputs(source, CPU, teacher=teacher)
    fitting = fit.fitted_to_passes(settings, inputs, 700.0)
    longer = replace(fitting, loop=replace(fitting.loop, steps=fitting.loop.steps + 2))
    assert 0.85 * 700 < passes_of(fitting, inputs) < 1.02 * 700 < passes_of(longer, inputs)
    assert fit.fitted_to_passes(settings, inputs, 1e9) == settings  # never longer than the recipe


@pytest.mark.slow
def test_fewer_passes_than_those_of_one_step_are_refused(source, teacher):
    settings = replace(MARKOV, data=replace(MARKOV.data, length=8))
    inputs = Inputs(source, CPU, teacher=teacher)
    with pytest.raises(UsageError, match=r"max-passes fits one step or more; the shortest run has .* passes, got 2"):
        fit.fitted_to_passes(settings, inputs, 2.0)
    with pytest.raises(UsageError, match="max-passes is positive; got nan"):
        fit.fitted_to_passes(settings, inputs, float("nan"))
    compiled = replace(settings, loop=replace(settings.loop, compile=True))
    with pytest.raises(UsageError, match=r"max-passes cannot be combined with loop\.compile"):
        fit.fitted_to_passes(compiled, inputs, 10.0)
