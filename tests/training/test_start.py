"""Runs that start from the student of a bundle, and those that train a discriminator of it alone."""

import math
import os
import signal
from dataclasses import replace

import pytest

from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.didi_networks import check_objective
from didi.methods.objective_settings import ObjectiveConfig
from didi.models.bundle import load, save
from didi.models.initial_state import InitialState
from didi.sampling.generate import generate
from didi.training.fit import fitted
from didi.training.loop import Interrupted, RunFolder, run

from .distill_case import CONFIG, CPU, equal, weights, with_discriminator


@pytest.fixture
def begun(make_job, tmp_path):
    """A short run's bundle, and where it is stored."""
    job = make_job()
    for step in range(job.num_steps):
        job.step(step)
    save(job.bundle(), tmp_path / "begun")
    return job, str(tmp_path / "begun")


def test_a_run_starts_from_the_networks_of_a_bundle(begun, make_job):
    first, name = begun
    plain, second = make_job(), make_job(config=replace(CONFIG, start=name))
    assert equal(weights(second.method.student), weights(first.averaged()))
    assert equal(weights(second.method.discriminator), weights(first.method.discriminator))
    assert equal(weights(second.method.teacher), weights(plain.method.teacher))
    assert not equal(weights(second.method.student), weights(plain.method.student))


def test_a_start_without_a_discriminator_begins_with_that_of_a_plain_run(begun, make_job, tmp_path):
    first, _ = begun
    save(replace(first.bundle(), discriminator=None), tmp_path / "lone")
    plain, second = make_job(), make_job(config=replace(CONFIG, start=str(tmp_path / "lone")))
    assert equal(weights(second.method.student), weights(first.averaged()))
    assert equal(weights(second.averaged()), weights(first.averaged()))
    assert equal(weights(second.method.discriminator), weights(plain.method.discriminator))
    assert not equal(weights(second.method.discriminator), weights(first.method.discriminator))


def test_a_start_without_a_student_is_refused(teacher, make_job, tmp_path):
    save(teacher, tmp_path / "teacher")
    with pytest.raises(UsageError, match=r"^start names a bundle with a student; .* holds teacher: take it as teacher"):
        make_job(config=replace(CONFIG, start=str(tmp_path / "teacher")))


def test_a_start_of_another_shape_is_refused(begun, make_job):
    config = replace(with_discriminator(output="sequence"), start=begun[1])
    with pytest.raises(
        UsageError, match=r"the networks of start have .*; the discriminator of .* has output token, not sequence: set"
    ):
        make_job(config=config)


def test_a_start_goes_without_adapters():
    with pytest.raises(UsageError, match="start cannot be combined with lora_rank; got markov and 4"):
        replace(CONFIG, start="markov", lora_rank=4)


def test_a_start_that_is_gone_is_named(make_job):
    with pytest.raises(UsageError, match=r"^start, which a resumed run needs too: .* got 'nobody'"):
        make_job(config=replace(CONFIG, start="nobody"))


LESSONS = {"warmup_steps": 1, "guidance_steps": 4, "guidance_nfe": 3}


def alone(name, **discriminator):
    """Settings of a run that trains the discriminator of a student alone."""
    loop = replace(CONFIG.loop, steps=0)
    settings = replace(CONFIG.discriminator, **LESSONS | discriminator)
    return replace(CONFIG, start=name, loop=loop, discriminator=settings)


def test_a_discriminator_learns_alone_and_the_student_stays_bit_for_bit(begun, make_job, tmp_path):
    first, name = begun
    job = make_job(config=alone(name))
    before = weights(job.method.discriminator)
    assert job.num_steps == 5
    assert [one.network for step in range(5) for one in job.method.updates(step)] == ["discriminator"] * 5
    for step in range(job.num_steps):
        assert "student_gradient_norm" not in job.step(step)
    assert math.isfinite(job.validate()["validation_log_ratio"])
    bundle = load(save(job.bundle(), tmp_path / "after"))
    assert equal(weights(bundle.student), weights(first.averaged()))
    assert not equal(weights(bundle.discriminator), before)
    assert bundle.intended_nfe == 3  # the moves whose states it knows
    assert (generate(bundle, num_samples=2, nfe=3, sampler="guided").discriminator_passes > 0).any()


def test_a_run_of_the_discriminator_alone_resumes_bit_for_bit(begun, make_job, tmp_path, assert_same_state):
    config, folders = alone(begun[1]), [RunFolder(tmp_path / name) for name in ("straight", "stopped")]
    for folder in folders:
        folder.prepare("", resume=False)
    straight, stopped = (make_job(config, folder.path) for folder in folders)
    run(straight, config.loop, folders[0], resume=False)
    step = stopped.step

    def stop_in_the_lessons(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(number)

    stopped.step = stop_in_the_lessons
    with pytest.raises(Interrupted):
        run(stopped, config.loop, folders[1], resume=False)
    resumed = make_job(config, folders[1].path)
    run(resumed, config.loop, folders[1], resume=True)
    assert_same_state(resumed.state_dict(), straight.state_dict())


def test_a_length_in_minutes_is_refused_for_a_run_without_updates_of_the_student(begun, source, teacher):
    with pytest.raises(UsageError, match=r"^max-minutes limits loop.steps, which is 0"):
        fitted(alone(begun[1]), Inputs(source, CPU, teacher=teacher), 1.0)


ONE_STEP = replace(
    CONFIG,
    objective=ObjectiveConfig(
        trajectory="whole-path", moves=1, initial_mask_ratio=0.5, divergence_weight=0.0, entropy_weight=0.0
    ),
)


def test_a_student_that_starts_at_random_is_trained_on_from_its_own_state_and_its_bundle_says_so(make_job, tmp_path):
    job = make_job(config=ONE_STEP)
    for step in range(job.num_steps):
        job.step(step)
    save(job.bundle(), tmp_path / "one")
    bundle = load(tmp_path / "one")
    assert (bundle.intended_nfe, bundle.initial_state) == (1, InitialState(mask_ratio=0.5))
    assert not equal(weights(bundle.student), weights(bundle.teacher))
    second = make_job(config=replace(ONE_STEP, start=str(tmp_path / "one")))
    assert equal(weights(second.method.student), weights(bundle.student))
    with pytest.raises(UsageError, match=r"that of .* has mask_ratio 0\.5, this run 1: set objective.initial_mask"):
        make_job(config=replace(CONFIG, start=str(tmp_path / "one")))
    save(replace(bundle, initial_state=InitialState(0.5, 0.1)), tmp_path / "noisy")
    with pytest.raises(UsageError, match=r"student without noise in its embeddings, .* has noise_std 0\.1"):
        make_job(config=replace(ONE_STEP, start=str(tmp_path / "noisy")))
    assert job.validate().keys() == {"validation_log_ratio"}


def test_guidance_is_not_learnt_by_students_that_start_at_random():
    with pytest.raises(UsageError, match=r"guidance_steps is 0 with objective\.initial_mask_ratio below 1"):
        replace(ONE_STEP, discriminator=replace(ONE_STEP.discriminator, guidance_steps=3))


def test_a_uniform_state_student_starts_from_no_masks():
    with pytest.raises(UsageError, match=r"initial_mask_ratio is 1 for a teacher of uniform diffusion"):
        check_objective(ONE_STEP, Uniform(4))
