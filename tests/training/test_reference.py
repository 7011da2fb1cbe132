"""The reference of the rewards, ``objective.reference_steps``: when it is renewed, and its uses."""

from dataclasses import asdict, replace

import pytest
import torch

from didi.errors import UsageError
from didi.methods.didi_settings import DistillConfig, ObjectiveConfig

from .distill_case import BRANCHES, BUDGETS, CONFIG, WHOLE, equal, weights

TWO_UPDATES = replace(CONFIG.discriminator, steps_per_student_step=2, fresh_rollouts=True, guidance_steps=1)
WITH_REFERENCE = replace(
    CONFIG,
    objective=ObjectiveConfig(**WHOLE, reference_steps=2),
    discriminator=TWO_UPDATES,
    loop=replace(CONFIG.loop, steps=5),
)


@pytest.mark.slow
def test_the_reference_is_the_student_after_every_second_of_its_updates(make_job):
    job = make_job(WITH_REFERENCE)
    students, ratios = [weights(job.method.student)], []
    reference = job.method.frozen["reference"]
    for step in range(job.num_steps):
        metrics = job.step(step)
        students.append(weights(job.method.student))
        renewed = 2 + (min(step + 1, 7) - 2) // 2 * 2  # two warm-up steps, five of the student, one guidance step
        assert equal(weights(reference), students[renewed if step >= 2 else 0])
        if 2 <= step < 7:
            ratios.append(float(metrics["reference_log_ratio"]))
    assert [abs(ratio) > 1e-4 for ratio in ratios] == [False, True, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [WHOLE, BRANCHES, BUDGETS, BUDGETS | {"budget_conditioning": False}, WHOLE | {"reward_time": "both"}]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_job, assert_resumes_exactly, objective):
    config = replace(WITH_REFERENCE, objective=ObjectiveConfig(**objective, reference_steps=2))
    # At step 5 the student has had one update since the reference was renewed.
    assert_resumes_exactly(lambda folder: make_job(config, folder), config.loop, 5)


@pytest.mark.slow
def test_a_reference_shares_frozen_weights_with_adapters(make_job, assert_resumes_exactly):
    config = replace(WITH_REFERENCE, lora_rank=2)
    job = make_job(config)
    frozen = {name for name, weight in job.method.student.named_parameters() if not weight.requires_grad}
    reference = dict(job.method.frozen["reference"].named_parameters())
    assert frozen
    for name, weight in job.method.student.named_parameters():
        assert (reference[name] is weight) == (name in frozen)
    assert not frozen & job.state_dict()["method"]["reference"].keys()
    assert_resumes_exactly(lambda folder: make_job(config, folder), config.loop, 5)


@pytest.mark.slow
@torch.no_grad()
def test_the_discriminator_learns_from_the_reference(make_job):
    config = replace(WITH_REFERENCE, objective=replace(WITH_REFERENCE.objective, reference_steps=100))
    job = make_job(config)

    def losses():
        batch = job.method.prepare(2, 0)
        return [float(job.method._discriminator_loss(repeat, batch)[0]) for repeat in (0, 1)]

    def add_noise(network):
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))

    before = losses()
    add_noise(job.method.student)
    assert losses() == before
    add_noise(job.method.frozen["reference"])
    assert all(new != old for new, old in zip(losses(), before, strict=True))


def test_a_reference_reads_the_number_of_moves_as_the_student_does(make_job):
    method = make_job(replace(WITH_REFERENCE, objective=ObjectiveConfig(**BUDGETS, reference_steps=2))).method
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in method.student.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    drawn = method.prepare(2, 0).rollout
    assert method._reference.log_ratio(drawn).abs().max() > 0.1
    method._reference.renew(method.student)
    assert method._reference.log_ratio(drawn).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: replace(WITH_REFERENCE, discriminator=replace(TWO_UPDATES, fresh_rollouts=False)),
            "reference_steps needs discriminator.fresh_roll",
        ),
        (
            lambda: replace(WITH_REFERENCE, loop=replace(WITH_REFERENCE.loop, fsdp=True)),
            "reference_steps is 0 with loop.fsdp; got 2",
        ),
        (lambda: ObjectiveConfig(reference_steps=2), "is for trajectory whole-path; got 2 with two-moves"),
        (lambda: ObjectiveConfig(**WHOLE, reference_steps=1), "is 2 or more, or 0 for no reference; got 1"),
        (lambda: ObjectiveConfig(**WHOLE, reference_steps=-1), "is 2 or more, or 0 for no reference; got -1"),
    ],
)
def test_settings_that_exclude_a_reference_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_settings_of_older_versions_are_upgraded_to_no_reference():
    base = replace(WITH_REFERENCE, discriminator=CONFIG.discriminator)
    record = asdict(base)
    newer = {name: record["objective"].pop(name) for name in ("reference_steps", "budgets", "budget_conditioning")}
    objective = DistillConfig.upgraded(record, base)["objective"]
    assert objective == record["objective"] | {"reference_steps": 0, "budgets": (), "budget_conditioning": True}
    assert newer["reference_steps"] == 2
    for change in ({"trajectory": "two-moves"}, {"trajectory": "path"}, {"score_decomposition": False}):
        assert DistillConfig.upgraded({"objective": change}, base)["objective"]["reference_steps"] == 0
    assert "reference_steps" not in DistillConfig.upgraded({"objective": {"moves": 4}}, base)["objective"]


def test_a_checkpoint_without_the_reference_is_refused(make_job):
    state = make_job(WITH_REFERENCE).state_dict()
    del state["method"]["reference"]
    with pytest.raises(UsageError, match=r"holds a copy of the student; this one lacks its .*: start"):
        make_job(WITH_REFERENCE).load_state_dict(state)
