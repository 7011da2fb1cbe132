from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from didi.data.source import MarkovSource
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import sigma
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.didi_settings import DiscriminatorSettings, DistillConfig, ObjectiveConfig
from didi.methods.rollout import states_before_a_move
from didi.methods.settings import DataConfig, LoopConfig, OptimizerConfig
from didi.models.bundle import Bundle
from didi.sampling.generate import generate
from didi.training.trainer import make_trainer

CPU = torch.device("cpu")
DISCRIMINATOR_METRICS = (
    "discriminator_loss",
    "discriminator_accuracy",
    "discriminator_gradient_norm",
    "discriminator_learning_rate",
)
CONFIG = DistillConfig(
    data=DataConfig(corpus="markov", length=8),
    objective=ObjectiveConfig(completions=2, advantage="shared-state", revealed_only=True),
    discriminator=DiscriminatorSettings(warmup_steps=2, pool_size=16, pool_nfe=2),
    student_optimizer=OptimizerConfig(learning_rate=1e-3),
    discriminator_optimizer=OptimizerConfig(learning_rate=1e-3),
    loop=LoopConfig(
        steps=3,
        batch_size=4,
        log_every=1,
        validate_every=2,
        validation_sequences=16,
        checkpoint_every=2,
        ema_decay=0.5,
    ),
)


@pytest.fixture
def make_job(source, teacher, tmp_path):
    def make(config=CONFIG, folder=tmp_path, bundle=teacher):
        return make_trainer(config, Inputs(source, CPU, folder, bundle))

    return make


PATH = {"trajectory": "path", "moves": 4}


def with_objective(**changes):
    return replace(CONFIG, objective=replace(CONFIG.objective, **changes))


def with_discriminator(**changes):
    return replace(CONFIG, discriminator=replace(CONFIG.discriminator, **changes))


def with_loop(**changes):
    return replace(CONFIG, loop=replace(CONFIG.loop, **changes))


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_does_not_go_on_with_another_teacher(make_job, make_dit):
    state = make_job().state_dict()
    other = Bundle(teacher=make_dit(vocab_size=33, length=8, seed=2))
    with pytest.raises(UsageError, match="the teacher that it began with; the weights of '' are others now"):
        make_job(bundle=other).load_state_dict(state)


@pytest.mark.parametrize("stop_in", [0, 3], ids=["warm-up", "student phase"])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(make_job, run_twice, stop_in):
    run_twice(lambda folder: make_job(folder=folder), CONFIG.loop, stop_in)


@pytest.mark.parametrize(
    "config",
    [
        with_discriminator(real_source="teacher-pool"),
        pytest.param(
            with_discriminator(real_source="teacher-steps=2", steps_per_student_step=2), marks=pytest.mark.slow
        ),
        pytest.param(with_loop(accumulation=2), marks=pytest.mark.slow),
        pytest.param(with_objective(**PATH), marks=pytest.mark.slow),
        pytest.param(replace(with_discriminator(trainable_blocks=1), lora_rank=2), marks=pytest.mark.slow),
    ],
    ids=["pool", "online", "accumulation", "moves", "adapters"],
)
def test_other_ways_to_train_resume_as_well(make_job, run_twice, config):
    run_twice(lambda folder: make_job(config, folder), config.loop, 3)


def test_student_average_and_discriminator_start_as_the_teacher(make_job, teacher):
    job = make_job()
    of_teacher = weights(teacher.teacher)
    assert equal(of_teacher, weights(job.method.student))
    assert equal(of_teacher, weights(job.average.module))
    trunk = {name: value for name, value in of_teacher.items() if not name.startswith("output_layer.")}
    assert equal(trunk, weights(job.method.discriminator.trunk))
    assert job.method.student is not job.method.teacher
    assert not any(parameter.requires_grad for parameter in job.method.teacher.parameters())
    assert all(parameter.requires_grad for parameter in job.method.student.parameters())


def test_in_the_warm_up_only_the_discriminator_learns_and_then_the_student_too(make_job, teacher):
    job = make_job()
    start, head = weights(teacher.teacher), weights(job.method.discriminator)
    for step in range(2):
        metrics = job.step(step)
        assert "reward" not in metrics
    assert equal(start, weights(job.method.student))
    assert equal(start, weights(job.average.module))
    assert not equal(head, weights(job.method.discriminator))
    warm = weights(job.method.discriminator)
    metrics = job.step(2)
    assert {"reward", "student_gradient_norm", "discriminator_loss"} <= set(metrics)
    assert not equal(start, weights(job.method.student))
    assert not equal(warm, weights(job.method.discriminator))
    assert equal(start, weights(job.method.teacher))


GUIDED = with_discriminator(guidance_steps=3, guidance_nfe=3)


def test_after_the_students_last_step_only_the_discriminator_learns_from_the_finished_student(make_job):
    job = make_job(GUIDED)
    assert job.num_steps == 2 + 3 + 3
    for step in range(5):
        job.step(step)
    student, average, discriminator = (
        weights(job.method.student),
        weights(job.average.module),
        weights(job.method.discriminator),
    )
    seen = []
    job.method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    metrics = [job.step(step) for step in range(5, 8)]
    assert equal(student, weights(job.method.student))
    assert equal(average, weights(job.average.module))
    assert not equal(discriminator, weights(job.method.discriminator))
    assert all(set(row) == set(DISCRIMINATOR_METRICS) for row in metrics)
    for step, (states, level) in zip(range(5, 8), seen, strict=True):
        generator = named_generator(0, "guidance", step)
        move = torch.randint(1, 4, (4,), generator=generator)  # after 1, 2 or all 3 moves of the averaged student
        draws = torch.rand(2, 4, 8, dtype=torch.float64, generator=generator)
        expected = states_before_a_move(job.average.module, move, 3, draws, job.method.process)
        assert torch.equal(states[:4], expected)
        assert ((states == 32).any(1) | (move.repeat(2) == 3)).all()
        assert not ((states == 32).any(1) & (move.repeat(2) == 3)).any()  # the real side has the same times
        assert torch.allclose(level, sigma(job.method.process.schedule, 1 - move.double() / 3).float().repeat(2))


@pytest.mark.slow
def test_the_lessons_for_guidance_resume_bit_for_bit_and_change_nothing_before_them(
    make_job, run_twice, tmp_path, assert_same_state
):
    run_twice(lambda folder: make_job(GUIDED, folder), GUIDED.loop, 6)
    plain, guided = make_job(folder=tmp_path / "plain"), make_job(GUIDED, tmp_path / "guided")
    for step in range(plain.num_steps):
        plain.step(step)
        guided.step(step)
    assert_same_state(plain.state_dict(), guided.state_dict())


def test_frozen_blocks_of_the_discriminator_stay_the_teachers(make_job, teacher):
    job = make_job(with_discriminator(trainable_blocks=1))
    for step in range(4):
        job.step(step)
    before, after = weights(teacher.teacher), weights(job.method.discriminator.trunk)
    frozen = [name for name in before if name.startswith(("vocab_embed.", "sigma_map.", "blocks.0."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["blocks.1.attn_qkv.weight"], after["blocks.1.attn_qkv.weight"])


def test_a_checkpoint_of_before_the_trunk_was_a_part_of_its_own_is_read(make_job, assert_same_state, tmp_path):
    first, second = make_job(), make_job(folder=tmp_path / "again")
    first.step(0)
    state = first.state_dict()
    assert any(name.startswith("trunk.") for name in state["discriminator"])
    old = {name.removeprefix("trunk."): value for name, value in state["discriminator"].items()}
    second.load_state_dict(state | {"discriminator": old})
    assert_same_state(second.state_dict(), state)


def assert_trains(job, num_steps=3):
    start = weights(job.method.student)
    for step in range(num_steps):
        metrics = job.step(step)
        bad = [name for name, value in metrics.items() if not torch.isfinite(torch.as_tensor(value))]
        assert not bad
    assert metrics["student_gradient_norm"] > 0
    assert not equal(start, weights(job.method.student))


@pytest.mark.parametrize(
    ("advantage", "completions"),
    [("batch", 1), ("rows", 1), ("rows", 2), ("shared-time", 2), ("leave-one-out", 1), ("shared-state", 3)],
)
def test_every_grouping_trains(make_job, advantage, completions):
    assert_trains(make_job(with_objective(advantage=advantage, completions=completions, group_size=2)))


@pytest.mark.parametrize(("completions", "num_rows"), [(None, 4 * 2 * 2), (1, 4 * 1 * 2)], ids=["all", "first"])
def test_the_discriminator_may_learn_from_the_first_completions_only(make_job, completions, num_rows):
    job = make_job(with_discriminator(completions=completions))
    seen = []
    job.method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    job.step(0)
    assert seen == [num_rows]  # student and real rows in one pass; no reward is asked in the warm-up


@pytest.mark.parametrize("real_source", ["corpus", "teacher-pool", "teacher-steps=2"])
@pytest.mark.parametrize("output", ["token", "sequence"])
def test_every_real_side_trains(make_job, real_source, output):
    assert_trains(make_job(with_discriminator(real_source=real_source, output=output)))


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


def test_a_state_without_masks_breaks_nothing(make_job):
    # Beta(1, 400): in most batches no position of any z_tau or z_t is masked.
    config = replace(with_objective(time_b=400.0, divergence_weight=0.05), loop=replace(CONFIG.loop, steps=4))
    assert_trains(make_job(config), num_steps=6)


def test_a_clamped_reward_is_counted(make_job):
    job = make_job(with_objective(reward_clamp=1e-6))
    for step in range(3):
        metrics = job.step(step)
    assert metrics["clamp_fraction"] == 1
    assert abs(metrics["reward"]) <= 1e-6


def test_the_discriminator_learns_to_tell_student_from_corpus(make_job):
    # A random teacher writes nothing like the Markov chain.
    config = replace(
        with_discriminator(warmup_steps=24, label_smoothing=0.0),
        discriminator_optimizer=OptimizerConfig(learning_rate=0.01),
        loop=replace(CONFIG.loop, batch_size=16),
    )
    job = make_job(config)
    figures = [job.step(step) for step in range(24)]
    for name, sign in (("discriminator_loss", -1), ("discriminator_accuracy", 1)):
        values = torch.stack([row[name] for row in figures])
        assert sign * (values[-8:].mean() - values[:8].mean()) > 0.05


@pytest.mark.parametrize("real_source", ["corpus", "teacher-pool", "teacher-steps=2"])
def test_sequences_may_be_shorter_than_the_teachers_context(teacher, tmp_path, real_source):
    config = replace(with_discriminator(real_source=real_source), data=DataConfig(corpus="markov", length=6))
    assert_trains(make_trainer(config, Inputs(MarkovSource(6, seed=0), CPU, tmp_path, teacher)))


def test_a_teacher_pool_is_drawn_once_and_kept(make_job, tmp_path, teacher):
    config = with_discriminator(real_source="teacher-pool")
    make_job(config)
    file = tmp_path / "teacher-pool.safetensors"
    tokens = load_file(file)["tokens"]
    assert tokens.shape == (16, 8)
    assert (tokens < 32).all()
    save_file({"tokens": torch.zeros_like(tokens)}, file)
    job = make_job(config)
    assert (load_file(file)["tokens"] == 0).all()
    assert (job.method._real(0, 0, 0, 5) == 0).all()


def test_online_real_rows_are_teacher_samples_that_differ_by_step(make_job):
    job = make_job(with_discriminator(real_source="teacher-steps=3"))
    rows = job.method._real(0, 0, 0, 6)
    assert rows.shape == (6, 8)
    assert torch.equal(rows, job.method._real(0, 0, 0, 6))
    assert not torch.equal(rows, job.method._real(1, 0, 0, 6))


def test_released_groups_share_a_corpus_row(make_job, source):
    job = make_job(with_objective(advantage="rows", group_size=2, completions=1))
    rows = job.method._real(5, 0, 0, 4).view(2, 2, 8)
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert not torch.equal(rows[0, 0], rows[1, 0])


def test_the_first_move_of_the_teacher_is_computed_once_and_is_its_own(make_job, teacher):
    job = make_job()
    for step in range(3):
        job.step(step)
    masks = torch.full((1, 8), 32)
    with torch.no_grad():
        expected = teacher.teacher(masks)[0, :, :32].log_softmax(-1)
    torch.testing.assert_close(job.method._teacher_first[:, :32], expected)


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


def test_the_bundle_holds_averaged_student_teacher_and_discriminator(make_job, teacher):
    job = make_job()
    for step in range(4):
        job.step(step)
    bundle = job.bundle()
    assert equal(weights(bundle.student), weights(job.average.module))
    assert equal(weights(bundle.teacher), weights(teacher.teacher))
    assert bundle.discriminator is job.method.discriminator
    assert not bundle.student.training
    assert not bundle.discriminator.training
    assert generate(bundle, num_samples=2, nfe=4, sampler="guided").tokens.shape == (2, 8)


def test_adapters_share_the_teachers_weights_and_the_bundle_is_plain(make_job, teacher):
    job = make_job(replace(CONFIG, lora_rank=2))
    start = weights(job.method.teacher)
    shared = {parameter.data_ptr() for parameter in job.method.teacher.parameters()}
    for network in (job.method.student, job.average.module, job.method.discriminator):
        own = [one for one in network.parameters() if one.data_ptr() not in shared]
        assert own == [one for one in network.parameters() if one.requires_grad]
    for step in range(5):
        job.step(step)
    assert equal(start, weights(job.method.teacher))
    assert not any("blocks.0.attn_qkv.base_layer" in name for part in job.state_dict().values() for name in part)
    bundle = job.bundle()
    assert bundle.student.state_dict().keys() == start.keys()
    assert not equal(start, weights(bundle.student))
    rows = job.method.source.validation[:4]
    torch.testing.assert_close(bundle.student(rows), job.average.module(rows))
    assert generate(bundle, num_samples=2, nfe=4, sampler="guided").tokens.shape == (2, 8)


def test_a_student_may_be_distilled_again(make_job, make_dit):
    student = make_dit(vocab_size=33, length=8, seed=7)
    job = make_job(bundle=Bundle(student=student))
    assert equal(weights(student), weights(job.method.teacher))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"length": 9}}, "at most the teacher's context of 8 tokens; got 9"),
        (
            {"objective": {"advantage": "rows", "group_size": 3}},
            "multiple of objective.group_size for rows groups; got 4 and 3",
        ),
        ({"objective": {"advantage": "shared-time", "group_size": 8}}, "for shared-time groups; got 4 and 8"),
        ({"objective": PATH | {"coupled_time": False}}, "trajectory path and .* above 2 go with .*; got path and 2"),
        ({"objective": PATH | {"advantage": "shared-time"}}, "above 2 go with"),
        ({"objective": PATH | {"time_a": 2.0}}, "above 2 go with"),
        ({"objective": PATH, "discriminator": {"steps_per_student_step": 2}}, "above 2 go with"),
        ({"discriminator": {"warmup_moves": 3}, "objective": {"trajectory": "one-step"}}, "got one-step and 3"),
        ({"objective": {"moves": 4}}, "moves is for trajectory path; got 4 with two-moves: set objective.trajectory"),
        ({"objective": {"trajectory": "one-step", "moves": 2}}, "moves is for trajectory path; got 2 with one-step"),
        ({"objective": {"trajectory": "path"}}, "number of moves of trajectory path, 3 or more; got None"),
        ({"objective": {"trajectory": "path", "moves": 2}}, "number of moves of trajectory path, 3 or more; got 2"),
        ({"discriminator": {"warmup_moves": 1}}, "warmup-moves is 2 or more; got 1"),
        ({"discriminator": {"real_source": "teacher"}}, "got 'teacher'"),
        ({"discriminator": {"real_source": "teacher-steps=0"}}, "teacher-steps=K with K >= 1"),
        ({"discriminator": {"real_source": "teacher-steps=many"}}, "got 'teacher-steps=many'"),
        (
            {"discriminator": {"steps_per_student_step": 2}, "loop": {"accumulation": 3}},
            "cannot share accumulated batches; got 2 and 3",
        ),
        ({"discriminator": {"completions": 3}}, r"discriminator.completions lies in \[1, 2\], the objective's; got 3"),
        ({"discriminator": {"trainable_blocks": 3}}, r"trainable blocks lie in \[0, 2\]"),
        ({"lora_rank": 0}, "lora-rank is 1 or more; got 0"),
        ({"lora_rank": 2, "loop": {"fsdp": True}}, "lora_rank goes with AdamW and without loop.fsdp"),
        ({"lora_rank": 2, "student_optimizer": {"method": "muon"}}, "lora_rank goes with AdamW"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(make_job, changes, message):
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
def test_the_warm_up_has_moves_of_its_own(make_job, monkeypatch, warmup_moves, num_passes):
    config = replace(with_discriminator(warmup_moves=warmup_moves), loop=replace(CONFIG.loop, batch_size=16))
    job = make_job(replace(config, objective=replace(CONFIG.objective, trajectory="path", moves=8)))
    counts = []
    features = job.method.student.features
    monkeypatch.setattr(job.method.student, "features", lambda *inputs: counts.append(1) or features(*inputs))
    job.step(0)
    assert 0 < len(counts) <= num_passes
    counts.clear()
    job.step(2)
    assert 5 < len(counts) <= 9  # the all-mask law, and then as many as the furthest of 16 states has moves


def test_a_corpus_with_other_symbols_is_refused(make_job, make_dit):
    with pytest.raises(UsageError, match="the corpus has 33 symbols, the teacher 20"):
        make_job(bundle=Bundle(teacher=make_dit(vocab_size=20, length=8)))


def test_the_folder_is_touched_only_for_a_pool(make_job, tmp_path: Path):
    make_job(folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()
