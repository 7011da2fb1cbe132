"""Every option of a distillation trains, or is refused before the first step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from didi.errors import UsageError
from didi.methods import real_source
from didi.models.bundle import Bundle

from .distill_case import (
    BRANCHES,
    CONFIG,
    PATH,
    WHOLE,
    assert_trains,
    equal,
    weights,
    with_discriminator,
    with_loop,
    with_objective,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("advantage", "completions"),
    [("batch", 1), ("rows", 1), ("rows", 2), ("shared-time", 2), ("leave-one-out", 1), ("shared-state", 3)],
)
def test_every_advantage_trains(make_job, advantage, completions):
    assert_trains(make_job(with_objective(advantage=advantage, completions=completions, group_size=2)))


@pytest.mark.parametrize(("completions", "num_rows"), [(None, 4 * 2 * 2), (1, 4 * 1 * 2)], ids=["all", "first"])
def test_the_discriminator_may_learn_from_the_first_completions_only(make_job, completions, num_rows):
    job = make_job(with_discriminator(completions=completions))
    seen = []
    job.method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    job.step(0)
    assert seen == [num_rows]  # student and real rows in one pass; the warm-up computes no rewards


@pytest.mark.parametrize("number", [1, 10, 12])
def test_the_teacher_may_sample_with_any_number_of_moves(make_job, monkeypatch, number):
    drawn = []
    monkeypatch.setattr(real_source, "generate", lambda *_, nfe, **__: drawn.append(nfe) or SimpleNamespace(tokens=0))
    make_job(with_discriminator(real_source=f"teacher-steps={number}")).method._real(0, 0, 0, 4)
    assert drawn == [number]


@pytest.mark.slow
@pytest.mark.parametrize("real_source", ["corpus", "teacher-pool", "teacher-steps=2"])
@pytest.mark.parametrize("output", ["token", "sequence"])
def test_every_real_source_trains(make_job, real_source, output):
    assert_trains(make_job(with_discriminator(real_source=real_source, output=output)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        with_objective(trajectory="one-step"),
        with_objective(corruptions=3, revealed_only=False),
        with_objective(coupled_time=False, time_a=2.0, time_b=5.0, importance_weighting=True),
        with_objective(weight="nelbo", reward_clamp=0.01, pg_reduction="token-mean"),
        with_objective(divergence="backward", normalise_advantage=False),
        with_objective(divergence="jeffreys", reward_reduction="sum", divergence_weight=0.0),
        with_objective(**PATH, corruptions=2),
        with_discriminator(unsmooth=True, is_time_conditioned=False, steps_per_student_step=2),
        with_loop(accumulation=2, precision="bf16"),
    ],
    ids=["one move", "corruptions", "uncoupled", "clamped", "backward", "jeffreys", "moves", "unsmooth", "bf16"],
)
def test_every_other_option_trains(make_job, config):
    assert_trains(make_job(config))


@pytest.mark.slow
def test_states_without_masks_are_supported(make_job):
    # Beta(1, 400): in most batches no position of any z_tau or z_t is masked.
    config = replace(with_objective(time_b=400.0, divergence_weight=0.05), loop=replace(CONFIG.loop, steps=4))
    assert_trains(make_job(config), num_steps=6)


def test_a_clamped_reward_is_counted(make_job):
    job = make_job(with_objective(reward_clamp=1e-6))
    for step in range(3):
        metrics = job.step(step)
    assert metrics["clamp_fraction"] == 1
    assert abs(metrics["reward"]) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"length": 9}}, "at most the teacher's context of 8 tokens; got 9"),
        (
            {"objective": {"advantage": "rows", "group_size": 3}},
            "multiple of objective.group_size for rows groups; got 4 and 3",
        ),
        ({"objective": {"advantage": "shared-time", "group_size": 8}}, "for shared-time groups; got 4 and 8"),
        ({"objective": PATH | {"coupled_time": False}}, "trajectory path and .* above 2 need .*; got path and 2"),
        ({"objective": PATH | {"advantage": "shared-time"}}, "above 2 need"),
        ({"objective": PATH | {"time_a": 2.0}}, "above 2 need"),
        ({"objective": PATH, "discriminator": {"steps_per_student_step": 2}}, "above 2 need"),
        ({"discriminator": {"warmup_moves": 3}, "objective": {"trajectory": "one-step"}}, "got one-step and 3"),
        ({"objective": {"moves": 4}}, "for trajectory path or whole-path; got 4 with two-moves: set objective.traj"),
        ({"objective": {"trajectory": "one-step", "moves": 2}}, "path or whole-path; got 2 with one-step"),
        ({"objective": WHOLE | {"moves": None}}, "number of moves of trajectory whole-path, 1 or more; got None"),
        (
            {"objective": WHOLE | {"completions": 2}},
            "completions is 2 or more for advantage shared-state and 1 for .*; got 2 and leave-one-out: set advantage",
        ),
        (
            {"objective": WHOLE | {"advantage": "shared-state"}},
            "1 for other advantages; got 1 and shared-state: set",
        ),
        (
            {"objective": BRANCHES, "discriminator": {"completions": 4}},
            r"discriminator.completions lies in \[1, 3\], the objective's; got 4",
        ),
        ({"objective": WHOLE | {"revealed_only": True}}, "needs objective.revealed_only False"),
        ({"objective": WHOLE | {"divergence_weight": 0.1}}, "needs objective.divergence_weight 0"),
        ({"objective": WHOLE | {"entropy_weight": 0.1}}, "needs objective.entropy_weight 0"),
        (
            {"objective": WHOLE | {"advantage": "shared-time"}},
            "needs objective.advantage batch, rows or leave-one-out",
        ),
        ({"objective": WHOLE | {"time_a": 2.0}}, "needs objective.time_a 1"),
        ({"objective": WHOLE | {"coupled_time": False}}, "needs objective.coupled_time True"),
        (
            {"objective": WHOLE, "discriminator": {"warmup_moves": 5}},
            "warmup_moves is 2 with objective.trajectory whole-path",
        ),
        ({"objective": WHOLE | {"weight": "nelbo"}}, "needs objective.weight constant"),
        (
            {"objective": WHOLE | {"reward_time": "both", "importance_weighting": True}},
            "reward_time both needs objective.importance_weighting False",
        ),
        ({"objective": WHOLE | {"corruptions": 2}}, "reward_time finished needs objective.corruptions 1"),
        ({"discriminator": {"fresh_rollouts": True}}, "fresh_rollouts needs .* of 2 or more; got 1"),
        ({"objective": {"reward_time": "both"}}, "reward_time is for trajectory whole-path; got both with two-moves"),
        ({"objective": {"trajectory": "path"}}, "number of moves of trajectory path, 3 or more; got None"),
        ({"objective": {"trajectory": "path", "moves": 2}}, "number of moves of trajectory path, 3 or more; got 2"),
        ({"discriminator": {"warmup_moves": 1}}, "warmup_moves is 2 or more; got 1"),
        ({"discriminator": {"real_source": "teacher"}}, "got 'teacher'"),
        ({"discriminator": {"real_source": "teacher-steps=0"}}, "teacher-steps=K with K >= 1"),
        ({"discriminator": {"real_source": "teacher-steps=many"}}, "got 'teacher-steps=many'"),
        (
            {"discriminator": {"steps_per_student_step": 2}, "loop": {"accumulation": 2}},
            "cannot share accumulated batches; got 2 and 2",
        ),
        ({"discriminator": {"completions": 3}}, r"discriminator.completions lies in \[1, 2\], the objective's; got 3"),
        ({"discriminator": {"trainable_blocks": 3}}, r"trainable blocks lie in \[0, 2\]"),
        ({"lora_rank": 0}, "lora_rank is 1 or more; got 0"),
        ({"lora_rank": 2, "loop": {"fsdp": True}}, "lora_rank needs AdamW without loop.fsdp"),
        ({"lora_rank": 2, "student_optimizer": {"method": "muon"}}, "lora_rank needs AdamW"),
    ],
)
def test_invalid_settings_are_refused_before_the_first_step(make_job, changes, message):
    with pytest.raises(UsageError, match=message):
        make_job(
            replace(
                CONFIG,
                **{
                    part: replace(getattr(CONFIG, part), **new) if isinstance(new, dict) else new
                    for part, new in changes.items()
                },
            )
        )


@pytest.mark.parametrize(("warmup_moves", "num_passes"), [(2, 2), (4, 5)])
def test_the_warm_up_has_its_own_number_of_moves(make_job, monkeypatch, warmup_moves, num_passes):
    config = replace(with_discriminator(warmup_moves=warmup_moves), loop=replace(CONFIG.loop, batch_size=16))
    job = make_job(replace(config, objective=replace(CONFIG.objective, trajectory="path", moves=8)))
    counts = []
    features = job.method.student.features
    monkeypatch.setattr(job.method.student, "features", lambda *inputs: counts.append(1) or features(*inputs))
    job.step(0)
    assert 0 < len(counts) <= num_passes
    counts.clear()
    job.step(2)
    assert 5 < len(counts) <= 9  # the all-mask state, and the moves of the last of 16 states


def test_a_student_is_distilled_only_as_the_teacher_of_a_bundle(make_job, make_dit):
    student = make_dit(vocab_size=33, length=8, seed=7)
    job = make_job(bundle=Bundle(teacher=student))
    assert equal(weights(student), weights(job.method.teacher))
    with pytest.raises(UsageError, match=r"takes the teacher of a bundle; mine has none \(it holds student\): name"):
        make_job(bundle=Bundle(student=student, name="mine"))
