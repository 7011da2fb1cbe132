"""Runs that start from the student and the discriminator of a bundle."""

from dataclasses import replace

import pytest

from didi.errors import UsageError
from didi.models.bundle import save

from .distill_case import CONFIG, equal, weights, with_discriminator


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


def test_a_start_without_a_discriminator_is_refused(begun, make_job, tmp_path):
    bundle = replace(begun[0].bundle(), discriminator=None)
    save(bundle, tmp_path / "lone")
    with pytest.raises(UsageError, match=r"start names a bundle with a student and a discriminator; .* holds student"):
        make_job(config=replace(CONFIG, start=str(tmp_path / "lone")))


def test_a_start_of_another_shape_is_refused(begun, make_job):
    config = replace(with_discriminator(output="sequence"), start=begun[1])
    with pytest.raises(
        UsageError, match=r"the networks of start have .*; the discriminator of .* has output token, not sequence: set"
    ):
        make_job(config=config)


def test_a_start_goes_without_adapters():
    with pytest.raises(UsageError, match="start goes without lora_rank; got markov and 4"):
        replace(CONFIG, start="markov", lora_rank=4)


def test_a_start_that_is_gone_is_named(make_job):
    with pytest.raises(UsageError, match=r"^start, which a resumed run needs too: .* got 'nobody'"):
        make_job(config=replace(CONFIG, start="nobody"))
