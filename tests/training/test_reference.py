"""The reference of the rewards, ``objective.reference_steps``: when it is renewed, and what it is used for."""

from dataclasses import replace

import pytest
import torch

from didi.errors import UsageError
from didi.methods.didi_settings import ObjectiveConfig

from .distill_case import BRANCHES, BUDGETS, CONFIG, WHOLE, equal, weights

TWO_UPDATES = replace(CONFIG.discriminator, steps_per_student_step=2, fresh_rollouts=True, guidance_steps=1)
KEPT = replace(
    CONFIG,
    objective=ObjectiveConfig(**WHOLE, reference_steps=2),
    discriminator=TWO_UPDATES,
    loop=replace(CONFIG.loop, steps=5),
)


def test_the_reference_is_the_student_after_every_second_of_its_updates(make_job):
    job = make_job(KEPT)
    students, ratios = [weights(job.method.student)], []
    reference = job.method.frozen["reference"]
    for step in range(job.num_steps):
        metrics = job.step(step)
        students.append(weights(job.method.student))
        renewed = 2 + (min(step + 1, 7) - 2) // 2 * 2  # two steps of warm-up, five of the student, one lesson
        assert equal(weights(reference), students[renewed if step >= 2 else 0])
        if 2 <= step < 7:
            ratios.append(float(metrics["reference_log_ratio"]))
    assert [abs(ratio) > 1e-4 for ratio in ratios] == [False, True, False, True, False]


@pytest.mark.parametrize(
    "objective", [WHOLE, BRANCHES, BUDGETS, BUDGETS | {"budget_conditioning": False}, WHOLE | {"reward_time": "both"}]
)
def test_a_resumed_run_ends_as_a_straight_one(make_job, run_twice, objective):
    config = replace(KEPT, objective=ObjectiveConfig(**objective, reference_steps=2))
    run_twice(lambda folder: make_job(config, folder), config.loop, 5)  # the reference is an update old


def test_adapters_have_a_reference_too(make_job, run_twice):
    config = replace(KEPT, lora_rank=2)
    job = make_job(config)
    frozen = {name for name, one in job.method.student.named_parameters() if not one.requires_grad}
    reference = dict(job.method.frozen["reference"].named_parameters())
    assert frozen
    assert all((reference[name] is one) == (name in frozen) for name, one in job.method.student.named_parameters())
    assert not frozen & job.state_dict()["method"]["reference"].keys()
    run_twice(lambda folder: make_job(config, folder), config.loop, 5)


@torch.no_grad()
def test_the_discriminator_learns_from_the_reference(make_job):
    config = replace(KEPT, objective=replace(KEPT.objective, reference_steps=100))
    job = make_job(config)
    batch = job.method.prepare(2, 0)
    of_first = [float(job.method._discriminator_loss(repeat, batch)[0]) for repeat in (0, 1)]
    for one in job.method.student.parameters():
        one.add_(torch.ones_like(one))
    assert [float(job.method._discriminator_loss(repeat, batch)[0]) for repeat in (0, 1)] == of_first
    for one in job.method.frozen["reference"].parameters():
        one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(0)))
    assert [float(job.method._discriminator_loss(repeat, batch)[0]) for repeat in (0, 1)] != of_first


def test_a_reference_reads_the_number_of_moves_as_the_student_does(make_job):
    method = make_job(replace(KEPT, objective=ObjectiveConfig(**BUDGETS, reference_steps=2))).method
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in method.student.parameters():
            one.add_(0.3 * torch.randn(one.shape, generator=generator))
    drawn = method.prepare(2, 0).rollout
    assert method._reference.log_ratio(drawn).abs().max() > 0.1
    method._reference.renew(method.student)
    assert method._reference.log_ratio(drawn).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": ObjectiveConfig(**WHOLE, reference_steps=2)}, "reference_steps needs discriminator.fresh_roll"),
        ({"loop": replace(KEPT.loop, fsdp=True)}, "reference_steps goes without loop.fsdp"),
    ],
)
def test_what_it_does_not_go_with(change, message):
    plain = replace(CONFIG.discriminator, steps_per_student_step=2)
    with pytest.raises(UsageError, match=message):
        replace(KEPT, **({"discriminator": plain} if "objective" in change else {}), **change)
    with pytest.raises(UsageError, match="reference_steps is for trajectory whole-path; got 2 with two-moves"):
        ObjectiveConfig(reference_steps=2)
    with pytest.raises(UsageError, match="reference-steps is 0 or more; got -1"):
        ObjectiveConfig(**WHOLE, reference_steps=-1)
