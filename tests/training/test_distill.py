"""A distillation with DiDi-Instruct: phases, resumption, real sequences, adapters, and its bundle."""

import copy
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
from didi.methods.settings import DataConfig, OptimizerConfig
from didi.methods.trajectories import states_before_a_move
from didi.models.bundle import Bundle
from didi.sampling.generate import generate
from didi.training.trainer import make_trainer

from .distill_case import (
    CONFIG,
    CPU,
    PATH,
    assert_trains,
    equal,
    weights,
    with_discriminator,
    with_loop,
    with_objective,
)

DISCRIMINATOR_METRICS = (
    "discriminator_loss",
    "discriminator_accuracy",
    "discriminator_gradient_norm",
    "discriminator_learning_rate",
    "sequence_passes",
)


def test_a_run_does_not_resume_with_another_teacher(make_job, make_dit):
    state = make_job().state_dict()
    other = Bundle(teacher=make_dit(vocab_size=33, length=8, seed=2))
    with pytest.raises(UsageError, match="the teacher it started with; the weights of '' have changed"):
        make_job(bundle=other).load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("stop_in", [0, 3], ids=["warm-up", "student phase"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_job, assert_resumes_exactly, stop_in):
    assert_resumes_exactly(lambda folder: make_job(folder=folder), CONFIG.loop, stop_in)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        with_discriminator(real_source="teacher-pool"),
        with_discriminator(real_source="teacher-steps=2", steps_per_student_step=2),
        with_loop(accumulation=2),
        with_objective(**PATH),
        replace(with_discriminator(trainable_blocks=1), lora_rank=2),
    ],
    ids=["pool", "online", "accumulation", "moves", "adapters"],
)
def test_other_configurations_resume_too(make_job, assert_resumes_exactly, config):
    assert_resumes_exactly(lambda folder: make_job(config, folder), config.loop, 3)


def test_student_average_and_discriminator_start_as_the_teacher(make_job, teacher):
    job = make_job()
    teacher_weights = weights(teacher.teacher)
    assert equal(teacher_weights, weights(job.method.student))
    assert equal(teacher_weights, weights(job.average.module))
    trunk = {name: value for name, value in teacher_weights.items() if not name.startswith("output_layer.")}
    assert equal(trunk, weights(job.method.discriminator.trunk))
    assert job.method.student is not job.method.teacher
    assert not any(parameter.requires_grad for parameter in job.method.teacher.parameters())
    assert all(parameter.requires_grad for parameter in job.method.student.parameters())


@pytest.mark.slow
def test_in_the_warm_up_only_the_discriminator_learns_and_then_the_student_too(make_job, teacher):
    job = make_job()
    start, initial = weights(teacher.teacher), weights(job.method.discriminator)
    for step in range(2):
        metrics = job.step(step)
        assert "reward" not in metrics
    assert equal(start, weights(job.method.student))
    assert equal(start, weights(job.average.module))
    assert not equal(initial, weights(job.method.discriminator))
    warm = weights(job.method.discriminator)
    metrics = job.step(2)
    assert {"reward", "student_gradient_norm", "discriminator_loss"} <= set(metrics)
    assert not equal(start, weights(job.method.student))
    assert not equal(warm, weights(job.method.discriminator))
    assert equal(start, weights(job.method.teacher))


GUIDED = with_discriminator(guidance_steps=3, guidance_nfe=3)


@pytest.mark.slow
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
    for step, (states, level, _) in zip(range(5, 8), seen, strict=True):
        generator = named_generator(0, "guidance", step)
        move = torch.randint(1, 4, (4,), generator=generator)  # after 1, 2 or all 3 moves of the averaged student
        draws = torch.rand(2, 4, 8, dtype=torch.float64, generator=generator)
        expected = states_before_a_move(job.average.module, job.method.process, move, 3, draws)
        assert torch.equal(states[:4], expected)
        assert ((states == 32).any(1) | (move.repeat(2) == 3)).all()
        assert not ((states == 32).any(1) & (move.repeat(2) == 3)).any()  # real sequences have the same times
        assert torch.allclose(level, sigma(job.method.process.schedule, 1 - move.double() / 3).float().repeat(2))


@pytest.mark.slow
def test_guidance_steps_resume_bit_for_bit_and_change_no_earlier_step(
    make_job, assert_resumes_exactly, tmp_path, assert_same_state
):
    assert_resumes_exactly(lambda folder: make_job(GUIDED, folder), GUIDED.loop, 6)
    plain, guided = make_job(folder=tmp_path / "plain"), make_job(GUIDED, tmp_path / "guided")
    for step in range(plain.num_steps):
        plain.step(step)
        guided.step(step)
    assert_same_state(plain.state_dict(), guided.state_dict())


@pytest.mark.slow
def test_frozen_blocks_of_the_discriminator_keep_the_teachers_weights(make_job, teacher):
    job = make_job(with_discriminator(trainable_blocks=1))
    for step in range(4):
        job.step(step)
    before, after = weights(teacher.teacher), weights(job.method.discriminator.trunk)
    frozen = [name for name in before if name.startswith(("vocab_embed.", "sigma_map.", "blocks.0."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["blocks.1.attn_qkv.weight"], after["blocks.1.attn_qkv.weight"])


def test_a_checkpoint_with_other_parts_is_refused_and_changes_nothing(make_job, assert_same_state):
    job = make_job()
    job.step(0)
    before = copy.deepcopy(job.state_dict())
    old = {name: torch.zeros(2) for name in ("student", "discriminator", "average", "method")}
    with pytest.raises(
        UsageError, match=r"holds average, discriminator, method, student; got .*another version of didi"
    ):
        job.load_state_dict(old | {"student_optimizer": {}, "discriminator_optimizer": {}})
    assert_same_state(job.state_dict(), before)


@pytest.mark.parametrize("part", ["student", "discriminator", "average"])
def test_a_checkpoint_that_lacks_a_weight_is_refused(make_job, part):
    state = copy.deepcopy(make_job().state_dict())
    name = next(iter(state[part]["weights"]))
    del state[part]["weights"][name]
    with pytest.raises(UsageError, match=f"lacks {name}: another version of didi wrote it; start again"):
        make_job().load_state_dict(state)


def test_saving_changes_no_optimizer_even_before_its_first_step(make_job, assert_same_state):
    job = make_job()
    job.step(0)  # of the warm-up: the student's optimizer has no moments
    assert not job.optimizers["student"].state
    before = copy.deepcopy([optimizer.state_dict() for optimizer in job.optimizers.values()])
    state = job.state_dict()
    assert state["student"]["optimizer"] == {}
    assert_same_state([optimizer.state_dict() for optimizer in job.optimizers.values()], before)
    other = make_job()
    other.load_state_dict(copy.deepcopy(state))
    assert not other.optimizers["student"].state


@pytest.mark.slow
def test_the_discriminator_learns_to_distinguish_student_and_corpus(make_job):
    # Samples of a random teacher differ much from the Markov chain.
    config = replace(
        with_discriminator(warmup_steps=24, label_smoothing=0.0),
        discriminator_optimizer=OptimizerConfig(learning_rate=0.01),
        loop=replace(CONFIG.loop, batch_size=16),
    )
    job = make_job(config)
    rows = [job.step(step) for step in range(24)]
    for name, sign in (("discriminator_loss", -1), ("discriminator_accuracy", 1)):
        values = torch.stack([row[name] for row in rows])
        assert sign * (values[-8:].mean() - values[:8].mean()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("real_source", ["corpus", "teacher-pool", "teacher-steps=2"])
def test_sequences_may_be_shorter_than_the_teachers_context(teacher, tmp_path, real_source):
    config = replace(with_discriminator(real_source=real_source), data=DataConfig(corpus="markov", length=6))
    assert_trains(make_trainer(config, Inputs(MarkovSource(6, seed=0), CPU, tmp_path, teacher)))


def test_a_teacher_pool_is_drawn_once_and_kept(make_job, tmp_path):
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


def test_teacher_samples_drawn_in_every_step_depend_on_the_step_only(make_job):
    job = make_job(with_discriminator(real_source="teacher-steps=3"))
    rows = job.method._real(0, 0, 0, 6)
    assert rows.shape == (6, 8)
    assert torch.equal(rows, job.method._real(0, 0, 0, 6))
    assert not torch.equal(rows, job.method._real(1, 0, 0, 6))


def test_a_group_of_advantage_rows_shares_a_corpus_row(make_job):
    job = make_job(with_objective(advantage="rows", group_size=2, completions=1))
    rows = job.method._real(5, 0, 0, 4).view(2, 2, 8)
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert not torch.equal(rows[0, 0], rows[1, 0])


def test_the_first_move_of_the_teacher_is_computed_once(make_job, teacher):
    job, masks, num_rows = make_job(), torch.full((1, 8), 32), []
    embedding = job.method.teacher.vocab_embed
    handle = embedding.register_forward_pre_hook(lambda _, inputs: num_rows.append(len(inputs[0])))
    for step in range(4):
        job.step(step)
    handle.remove()
    assert num_rows == [1, 4, 4]  # the all-mask state in the first of two student steps, z_tau in both
    with torch.no_grad():
        expected = teacher.teacher(masks)[0, :, :32].log_softmax(-1)
    torch.testing.assert_close(job.method._teacher_log_probs._first[:, :32], expected)


@pytest.mark.slow
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


@pytest.mark.slow
def test_adapters_share_the_teachers_weights_and_are_merged_in_the_bundle(make_job):
    job = make_job(replace(CONFIG, lora_rank=2))
    start = weights(job.method.teacher)
    shared = {parameter.data_ptr() for parameter in job.method.teacher.parameters()}
    for network in (job.method.student, job.average.module, job.method.discriminator):
        unshared = [weight for weight in network.parameters() if weight.data_ptr() not in shared]
        assert unshared == [weight for weight in network.parameters() if weight.requires_grad]
    for step in range(5):
        job.step(step)
    assert equal(start, weights(job.method.teacher))
    state = job.state_dict()
    for name, network in {**job.method.trained, "average": job.average}.items():  # no frozen weights are saved
        trained = {key for key, weight in network.named_parameters() if weight.requires_grad}
        assert state[name]["weights"].keys() == trained | {key for key, _ in network.named_buffers()}
        if name != "average":
            assert state[name]["optimizer"]["state"].keys() == trained
    bundle = job.bundle()
    assert bundle.student.state_dict().keys() == start.keys()
    assert not equal(start, weights(bundle.student))
    rows = job.method.source.validation[:4]
    torch.testing.assert_close(bundle.student(rows), job.average.module(rows))
    assert generate(bundle, num_samples=2, nfe=4, sampler="guided").tokens.shape == (2, 8)


def test_a_corpus_with_other_symbols_is_refused(make_job, make_dit):
    with pytest.raises(UsageError, match="the corpus has 33 symbols, the teacher 20"):
        make_job(bundle=Bundle(teacher=make_dit(vocab_size=20, length=8)))


def test_a_new_job_without_a_teacher_pool_creates_no_folder(make_job, tmp_path: Path):
    make_job(folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()
