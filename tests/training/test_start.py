"""Runs that start from the student of a bundle, and runs that train a discriminator only."""

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
from didi.training.fit import fitted_to_minutes
from didi.training.loop import Interrupted, RunFolder, run

from .distill_case import CONFIG, CPU, equal, weights, with_discriminator


@pytest.fixture
def start_bundle(make_job, tmp_path):
    """The job of a short run, and the folder of its bundle."""
    job = make_job()
    for step in range(job.num_steps):
        job.step(step)
    save(job.bundle(), tmp_path / "start")
    return job, str(tmp_path / "start")


@pytest.mark.slow
def test_a_run_starts_from_the_networks_of_a_bundle(start_bundle, make_job):
    first, name = start_bundle
    plain, second = make_job(), make_job(config=replace(CONFIG, start=name))
    assert equal(weights(second.method.student), weights(first.averaged()))
    assert equal(weights(second.method.discriminator), weights(first.method.discriminator))
    assert equal(weights(second.method.teacher), weights(plain.method.teacher))
    assert not equal(weights(second.method.student), weights(plain.method.student))


@pytest.mark.slow
def test_a_start_without_a_discriminator_gets_the_one_of_a_run_without_start(start_bundle, make_job, tmp_path):
    first, _ = start_bundle
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


@pytest.mark.slow
def test_a_start_of_another_shape_is_refused(start_bundle, make_job):
    config = replace(with_discriminator(output="sequence"), start=start_bundle[1])
    with pytest.raises(
        UsageError, match=r"the networks of start have .*; the discriminator of .* has output token, not sequence: set"
    ):
        make_job(config=config)


def test_start_cannot_be_combined_with_adapters():
    with pytest.raises(UsageError, match="start cannot be combined with lora_rank; got markov and 4"):
        replace(CONFIG, start="markov", lora_rank=4)


def test_a_start_that_does_not_exist_is_named(make_job):
    with pytest.raises(UsageError, match=r"^start, which a resumed run needs too: .* got 'nobody'"):
        make_job(config=replace(CONFIG, start="nobody"))


GUIDANCE = {"warmup_steps": 1, "guidance_steps": 4, "guidance_nfe": 3}


def discriminator_only(name, **discriminator):
    """Settings of a run that trains only the discriminator."""
    loop = replace(CONFIG.loop, steps=0)
    settings = replace(CONFIG.discriminator, **GUIDANCE | discriminator)
    return replace(CONFIG, start=name, loop=loop, discriminator=settings)


@pytest.mark.slow
def test_training_only_the_discriminator_leaves_the_student_unchanged(start_bundle, make_job, tmp_path):
    first, name = start_bundle
    job = make_job(config=discriminator_only(name))
    before = weights(job.method.discriminator)
    assert job.num_steps == 5
    assert [update.network for step in range(5) for update in job.method.updates(step)] == ["discriminator"] * 5
    for step in range(job.num_steps):
        assert "student_gradient_norm" not in job.step(step)
    assert math.isfinite(job.validate()["validation_log_ratio"])
    bundle = load(save(job.bundle(), tmp_path / "after"))
    assert equal(weights(bundle.student), weights(first.averaged()))
    assert not equal(weights(bundle.discriminator), before)
    assert bundle.intended_nfe == 3  # the moves of the guidance steps
    assert (generate(bundle, num_samples=2, nfe=3, sampler="guided").discriminator_passes > 0).any()


@pytest.mark.slow
def test_training_only_the_discriminator_resumes_bit_for_bit(start_bundle, make_job, tmp_path, assert_same_state):
    config = discriminator_only(start_bundle[1])
    folders = [RunFolder(tmp_path / name) for name in ("whole", "stopped")]
    for folder in folders:
        folder.prepare("", resume=False)
    whole, stopped = (make_job(config, folder.path) for folder in folders)
    run(whole, config.loop, folders[0], resume=False)
    step = stopped.step

    def stop_in_guidance_steps(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(number)

    stopped.step = stop_in_guidance_steps
    with pytest.raises(Interrupted):
        run(stopped, config.loop, folders[1], resume=False)
    resumed = make_job(config, folders[1].path)
    run(resumed, config.loop, folders[1], resume=True)
    assert_same_state(resumed.state_dict(), whole.state_dict())


@pytest.mark.slow
def test_a_length_in_minutes_is_refused_for_a_run_without_updates_of_the_student(start_bundle, source, teacher):
    with pytest.raises(UsageError, match=r"^max-minutes limits loop.steps, which is 0"):
        fitted_to_minutes(discriminator_only(start_bundle[1]), Inputs(source, CPU, teacher=teacher), 1.0)


ONE_STEP = replace(
    CONFIG,
    objective=ObjectiveConfig(
        trajectory="whole-path", moves=1, initial_mask_ratio=0.5, divergence_weight=0.0, entropy_weight=0.0
    ),
)


@pytest.mark.slow
def test_start_needs_a_student_with_the_same_initial_state(make_job, tmp_path):
    job = make_job(config=ONE_STEP)
    for step in range(job.num_steps):
        job.step(step)
    save(job.bundle(), tmp_path / "one")
    bundle = load(tmp_path / "one")
    assert (bundle.intended_nfe, bundle.initial_state) == (1, InitialState(mask_ratio=0.5))
    assert not equal(weights(bundle.student), weights(bundle.teacher))
    second = make_job(config=replace(ONE_STEP, start=str(tmp_path / "one")))
    assert equal(weights(second.method.student), weights(bundle.student))
    with pytest.raises(UsageError, match=r"the student of .* has mask_ratio 0\.5, this run 1: set objective"):
        make_job(config=replace(CONFIG, start=str(tmp_path / "one")))
    save(replace(bundle, initial_state=InitialState(0.5, 0.1)), tmp_path / "noisy")
    with pytest.raises(UsageError, match=r"student without embedding noise, .* has noise_std 0\.1"):
        make_job(config=replace(ONE_STEP, start=str(tmp_path / "noisy")))
    assert job.validate().keys() == {"validation_log_ratio"}


def test_guidance_steps_are_refused_for_a_random_initial_state():
    with pytest.raises(UsageError, match=r"guidance_steps is 0 with objective\.initial_mask_ratio below 1"):
        replace(ONE_STEP, discriminator=replace(ONE_STEP.discriminator, guidance_steps=3))


def test_an_initial_mask_ratio_is_refused_for_uniform_state_diffusion():
    with pytest.raises(UsageError, match=r"initial_mask_ratio is 1 for a teacher of uniform diffusion"):
        check_objective(ONE_STEP, Uniform(4))
