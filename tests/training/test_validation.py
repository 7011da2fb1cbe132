"""Validation of a distillation: NELBO of the averaged student, log-ratio of held-out sequences."""

import math
from dataclasses import replace

import torch

from didi.methods.settings import OptimizerConfig

from .distill_case import with_discriminator


def test_validation_is_deterministic_and_of_the_averaged_student(make_job):
    job = make_job()
    first = job.validate()
    torch.manual_seed(1)
    assert job.validate() == first
    with torch.no_grad():
        job.method.student.vocab_embed.embedding.zero_()
    assert job.validate() == first
    with torch.no_grad():
        job.average.module.vocab_embed.embedding.zero_()
    assert job.validate() != first


def test_validation_includes_the_discriminator(make_job):
    job = make_job()
    first = job.validate()["validation_log_ratio"]
    assert job.validate()["validation_log_ratio"] == first
    assert job.method.discriminator.training == make_job().method.discriminator.training
    with torch.no_grad():
        for parameter in job.method.discriminator.parameters():
            parameter.mul_(1e30)
    metrics = job.validate()
    assert math.isfinite(metrics["validation_nelbo"])
    assert not math.isfinite(metrics["validation_log_ratio"])


def test_the_discriminator_learns_that_held_out_sequences_are_real(make_job):
    job = make_job(
        replace(with_discriminator(warmup_steps=30), discriminator_optimizer=OptimizerConfig(learning_rate=5e-3))
    )
    for step in range(30):
        job.step(step)
    assert job.validate()["validation_log_ratio"] < -0.05
