"""DiDi-Instruct from teachers of uniform-state diffusion and of SEDD."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from didi.apps.train import distill_run
from didi.data.markov import CHAINS
from didi.data.source import MarkovSource, RandomSource
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import divergence
from didi.diffusion.noise import derive_seed
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.score import ScoreAbsorbing, ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.evaluation.exact.rows import ExactRows
from didi.methods.base import Inputs
from didi.methods.didi_settings import DiscriminatorSettings, ObjectiveConfig
from didi.methods.guidance_states import guidance_states, num_guidance_uniforms
from didi.models.bundle import Bundle, load, save
from didi.recipes import DISTILL
from didi.recipes.presets import preset
from didi.sampling.base import time_grid
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions
from didi.sampling.uniform_ancestral import UniformAncestral
from didi.training.loop import RunFolder
from didi.training.trainer import make_trainer

from . import rebuilt_step
from .distill_case import BRANCHES, BUDGETS, CONFIG, CPU, WHOLE, assert_trains, equal, weights
from .observed_step import observe_distillation
from .rebuilt_step import rebuilt_gradients

UNIFORM = replace(CONFIG, objective=ObjectiveConfig(**WHOLE))


@pytest.fixture(scope="module")
def uniform_teacher(make_dit):
    """A random uniform-state teacher for the 32 symbols of the Markov chain."""
    network = make_dit(vocab_size=32, mask_id=None, length=8, seed=1, is_time_conditioned=True)
    return Bundle(teacher=network, process=Uniform(32))


@pytest.fixture(scope="module")
def sedd_teacher(make_dit):
    """A random SEDD-absorb teacher for the same symbols."""
    network = make_dit(vocab_size=33, length=8, seed=1, is_time_conditioned=True)
    return Bundle(teacher=network, process=ScoreAbsorbing(32, schedule_from_name("log-linear-eps")))


def relative_difference(actual, expected):
    """Norm of the difference over the norm of the expected gradient."""
    assert actual.keys() == expected.keys()
    one, other = (torch.cat([values[name].flatten() for name in expected]) for values in (actual, expected))
    assert other.norm() > 0
    return float((one - other).norm() / other.norm())


def assert_gradients_as_rebuilt(config, step, source, bundle, folder, of_student=None):
    """Assert that the gradients of a step equal those from pure functions, which use the process ``of_student``."""
    observed = observe_distillation(config, [step], source, bundle, folder)
    student_bundle = bundle if of_student is None else replace(bundle, process=of_student)
    expected = rebuilt_gradients(rebuilt_step.Inputs(config, source, student_bundle), step, observed)
    assert [update.network for update in observed.updates] == [network for network, _ in expected]
    for update, (_, gradient) in zip(observed.updates, expected, strict=True):
        assert relative_difference(update.gradient, gradient) < 1e-4


@pytest.mark.parametrize(
    ("step", "objective", "discriminator"),
    [
        (0, WHOLE, {}),
        (2, WHOLE, {}),
        (2, WHOLE | {"moves": 1, "normalise_advantage": False}, {"output": "sequence", "is_time_conditioned": False}),
        (2, WHOLE, {"steps_per_student_step": 2}),
        (2, BRANCHES, {"steps_per_student_step": 2, "fresh_rollouts": True, "completions": 2}),
        (2, WHOLE | {"reference_steps": 2}, {"output": "sequence", "label_smoothing": 0.0}),
        (2, BRANCHES | {"reference_steps": 2}, {}),
        (2, BUDGETS, {"output": "sequence"}),
        (2, WHOLE | {"reward_reduction": "sum", "pg_reduction": "token-mean", "advantage": "batch"}, {}),
        (2, WHOLE, {"real_source": "teacher-pool"}),
        (2, WHOLE | {"reward_time": "density", "corruptions": 2}, {}),
        (2, WHOLE | {"reward_time": "both", "reference_steps": 2}, {"output": "sequence"}),
        (2, BRANCHES | {"reward_time": "both"}, {"steps_per_student_step": 2}),
        (5, WHOLE, {"guidance_steps": 2, "guidance_nfe": 4}),
        (5, BUDGETS, {"guidance_steps": 2, "output": "sequence"}),
    ],
)
def test_the_gradients_from_a_uniform_state_teacher_equal_those_from_pure_functions(
    source, uniform_teacher, tmp_path, step, objective, discriminator
):
    settings = DiscriminatorSettings(warmup_steps=2, pool_size=16, pool_nfe=2, **discriminator)
    config = replace(CONFIG, objective=ObjectiveConfig(**objective), discriminator=settings)
    assert_gradients_as_rebuilt(config, step, source, uniform_teacher, tmp_path)


@pytest.mark.parametrize("schedule", ["log-linear-eps", "cosine"])
def test_the_gradients_for_other_uniform_state_schedules_equal_those_from_pure_functions(
    source, uniform_teacher, tmp_path, schedule
):
    bundle = replace(uniform_teacher, process=Uniform(32, schedule_from_name(schedule)))
    assert_gradients_as_rebuilt(UNIFORM, 2, source, bundle, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [WHOLE, BRANCHES | {"reference_steps": 2}], ids=["plain", "reference"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_job, assert_resumes_exactly, uniform_teacher, objective
):
    config = replace(UNIFORM, objective=ObjectiveConfig(**objective))
    assert_resumes_exactly(lambda folder: make_job(config, folder, uniform_teacher), config.loop, 3)


@pytest.mark.slow
def test_adapters_with_accumulation_train(make_job, uniform_teacher):
    loop = replace(UNIFORM.loop, accumulation=2)
    assert_trains(make_job(replace(UNIFORM, lora_rank=2, loop=loop), bundle=uniform_teacher))


def test_the_discriminator_reads_finished_sequences_at_the_noise_level_of_t_0(make_job, uniform_teacher):
    job, seen = make_job(UNIFORM, bundle=uniform_teacher), []
    job.method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    batch = job.method.prepare(2, 0)
    job.step(2)
    states = seen[0][0]
    assert torch.equal(states[:4], batch.rollout.x[:, 0])
    assert torch.equal(states[4:], job.method._real(2, 0, 0, 4))
    assert not any(inputs[1].any() for inputs in seen)
    seen.clear()
    job.validate()
    assert torch.equal(seen[0][0], job.method.source.validation[:4])  # clean, as in training
    assert not seen[0][1].any()


@pytest.mark.parametrize("num_moves", [1, 4])
def test_guidance_states_are_those_of_the_finished_students_sampler(uniform_teacher, num_moves, unchecked):
    student, num, process = uniform_teacher.teacher, 12, uniform_teacher.process
    uniforms = torch.rand(1 + num_moves, num, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert num_guidance_uniforms(student, process, num_moves) == len(uniforms)

    remaining = [numbers[..., None] for numbers in uniforms]
    noise = SimpleNamespace(uniforms=lambda *shape, device=None, positions=None: remaining.pop(0).expand(num, *shape))
    sampler = UniformAncestral(student, process)
    states = [process.prior(Canvas.blank(num, 8), uniforms[0, ..., None].expand(-1, -1, 2))]
    states += [step.z for step in sampler(Canvas.blank(num, 8), time_grid(num_moves), noise)]
    move = torch.arange(num) % num_moves + 1
    actual = guidance_states(student, process, move, num_moves, uniforms)
    assert torch.equal(actual, torch.stack(states)[move, torch.arange(num)])
    assert not torch.equal(states[0], states[-1])


def test_guidance_steps_have_the_times_after_each_move_for_student_and_real_rows(make_job, uniform_teacher):
    settings = replace(UNIFORM.discriminator, guidance_steps=2, guidance_nfe=4)
    config = replace(UNIFORM, discriminator=settings, loop=replace(UNIFORM.loop, batch_size=40))
    job, seen = make_job(config, bundle=uniform_teacher), []
    job.method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    job.step(config.num_steps - 1)
    ((states, level, attention_mask),) = seen
    assert attention_mask is None
    fake, real = level.chunk(2)
    assert torch.equal(fake, real)
    expected = uniform_teacher.process.noise_level(job.method.discriminator, torch.tensor([0, 0.25, 0.5, 0.75]))
    levels = fake.unique()
    torch.testing.assert_close(levels, expected)
    clean = job.method._real(config.num_steps - 1, 0, 0, 40)
    kept = (states[40:] == clean).float()
    assert kept[fake == 0].all()
    assert 0.55 < kept[fake == levels[1]].mean() < 0.9  # 3/4 of the tokens at t = 1/4
    assert kept[fake == levels[3]].mean() < 0.45


@pytest.mark.slow
def test_validation_corrupts_sequences_unless_the_discriminator_reads_finished_samples_only(make_job):
    def reads_masks(config):
        job, seen = make_job(config), []
        job.method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        job.validate()
        return bool((seen[0] == 32).any())

    with_guidance = replace(CONFIG.discriminator, guidance_steps=1)
    assert reads_masks(CONFIG)
    assert not reads_masks(UNIFORM)
    assert reads_masks(replace(UNIFORM, objective=ObjectiveConfig(**WHOLE, reward_time="both")))
    assert reads_masks(replace(UNIFORM, discriminator=with_guidance))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({}, "objective.trajectory is whole-path .* no .MASK.; got two-moves: set it to whole-path"),
        ({"trajectory": "path", "moves": 4}, "trajectory is whole-path .*got path"),
    ],
)
def test_other_trajectories_are_refused_for_a_uniform_state_teacher(make_job, uniform_teacher, objective, message):
    config = replace(CONFIG, objective=ObjectiveConfig(**objective))
    with pytest.raises(UsageError, match=message):
        make_job(config, bundle=uniform_teacher)


def test_presets_of_two_moves_are_refused_for_a_uniform_state_teacher(make_job, uniform_teacher):
    for name in ("paper", "released", "two-moves"):
        with pytest.raises(UsageError, match="trajectory is whole-path"):
            make_job(preset(UNIFORM, name), bundle=uniform_teacher)


@pytest.mark.parametrize(("num", "is_accepted"), [(32, True), (33, True), (31, False), (34, False)])
def test_the_corpus_must_have_the_symbols_of_the_teacher_with_or_without_the_mask(make_dit, tmp_path, num, is_accepted):
    network = make_dit(vocab_size=num, mask_id=None, length=8, is_time_conditioned=True)
    inputs = Inputs(RandomSource(8, 33), CPU, tmp_path, Bundle(teacher=network, process=Uniform(num)))
    if is_accepted:
        make_trainer(UNIFORM, inputs)
    else:
        with pytest.raises(UsageError, match=f"the corpus has 33 symbols, the teacher {num}"):
            make_trainer(UNIFORM, inputs)


@pytest.mark.slow
def test_the_bundle_can_be_sampled_and_evaluated_exactly(make_dit, tmp_path):
    process, options = Uniform(4), SamplingOptions(role="student")
    network = make_dit(vocab_size=4, mask_id=None, length=5, seed=1, scale=0.5, is_time_conditioned=True)
    config = replace(UNIFORM, data=replace(CONFIG.data, corpus="exact", length=5))
    teacher = Bundle(teacher=network, process=process)
    job = make_trainer(config, Inputs(MarkovSource(5, seed=0, name="exact"), CPU, tmp_path, teacher))
    assert_trains(job)
    bundle = load(save(job.bundle(), tmp_path / "bundle"))
    assert (bundle.process, bundle.intended_nfe) == (process, 3)
    assert list(bundle.networks()) == ["student", "teacher", "discriminator"]
    assert generate(bundle, num_samples=3).nfe == 3
    student, of_teacher = (
        ExactRows(bundle)(CHAINS["exact"](), replace(options, role=role), 3) for role in ("student", "teacher")
    )
    assert student.kl > 0
    assert student.kl != of_teacher.kl
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "few-step uniform-state diffusion generator" in card
    assert "masked" not in card
    assert (generate(bundle, num_samples=3, sampler="guided").discriminator_passes > 0).any()
    with pytest.raises(UsageError, match="confidence does not sample uniform diffusion"):
        generate(bundle, num_samples=1, sampler="confidence")


@pytest.mark.slow
def test_the_student_of_a_sedd_absorb_teacher_is_a_masked_model_of_its_mask_and_schedule(
    make_job, sedd_teacher, tmp_path
):
    job = make_job(bundle=sedd_teacher)
    assert_trains(job, 4)
    bundle = load(save(job.bundle(), tmp_path / "bundle"))
    assert type(bundle.process) is Absorbing
    assert bundle.process == Absorbing(32, schedule_from_name("log-linear-eps"))
    assert equal(weights(bundle.teacher), weights(sedd_teacher.teacher))
    assert generate(bundle, num_samples=2, nfe=4, sampler="guided").tokens.shape == (2, 8)


@pytest.mark.slow
def test_the_model_card_describes_the_outputs_of_the_sedd_teacher(source, sedd_teacher, tmp_path, capsys):
    teacher = save(sedd_teacher, tmp_path / "teacher")
    folder = RunFolder(tmp_path / "run")
    config = replace(CONFIG, teacher=str(teacher)).limited(1)
    path = distill_run(config, folder, resume=False, device=CPU, source=source)
    assert capsys.readouterr().out == f"{path}\n"
    assert load(path).provenance["teacher_process"] == "sedd-absorb"
    sentence = "The teacher was trained as sedd-absorb; in this bundle its outputs, normalised, are the distribution of"
    assert sentence in (path / "README.md").read_text()


@pytest.mark.parametrize("step", [0, 2], ids=["warm-up", "student"])
def test_a_step_from_a_sedd_absorb_teacher_is_that_of_the_masked_model(source, sedd_teacher, tmp_path, step):
    objective = replace(CONFIG.objective, divergence_weight=0.5)  # of the student from the normalised outputs
    settings = replace(CONFIG.discriminator, real_source="teacher-pool")
    config = replace(CONFIG, objective=objective, discriminator=settings)
    masked = Absorbing(32, schedule_from_name("log-linear-eps"))
    assert_gradients_as_rebuilt(config, step, source, sedd_teacher, tmp_path, masked)


@pytest.mark.slow
@torch.no_grad()
def test_a_constant_added_to_all_sedd_outputs_does_not_change_the_distillation(make_job, sedd_teacher, tmp_path):
    """It changes the scores but not the masked model, and so neither pool nor regulariser nor validation."""
    shifted_teacher = Bundle(teacher=shifted(sedd_teacher.teacher, 2.0), process=sedd_teacher.process)
    config = replace(CONFIG, discriminator=replace(CONFIG.discriminator, real_source="teacher-pool"))
    jobs = [make_job(config, tmp_path / str(n), teacher) for n, teacher in enumerate((sedd_teacher, shifted_teacher))]
    pools = [job.method._real(0, 0, 0, 64) for job in jobs]
    assert torch.equal(*pools)
    batch = jobs[0].method.prepare(2, 0).rollout
    of_teacher = [job.method._teacher_log_probs(job.method.teacher, batch) for job in jobs]
    for first, second in zip(*of_teacher, strict=True):
        assert divergence("forward", first, second).abs().max() < 1e-5
    nelbos = [job.validate()["validation_nelbo"] for job in jobs]
    assert nelbos[0] == pytest.approx(nelbos[1], rel=1e-5)
    seed, options = derive_seed(config.seed, "pool"), {"num_samples": 16, "nfe": 2, "length": 8}
    masked, scores = (
        generate(replace(shifted_teacher, process=process), seed=seed, **options).tokens
        for process in (jobs[0].method.process, sedd_teacher.process)
    )
    assert not torch.equal(masked, scores)  # the samplers of scores depend on the constant


def shifted(network, constant):
    copy = rebuilt_step.copied({"network": network})["network"].eval()
    copy.output_layer.linear.bias.add_(constant)
    return copy


def test_a_sedd_uniform_teacher_is_refused(make_job, make_dit):
    network = make_dit(vocab_size=32, mask_id=None, length=8, is_time_conditioned=True)
    bundle = Bundle(teacher=network, process=ScoreUniform(32), name="ratios")
    with pytest.raises(
        UsageError,
        match=r"predicts the clean token, .*absorb.*; the process of ratios is sedd-uniform, .*: choose another",
    ):
        make_job(UNIFORM, bundle=bundle)


def test_the_recipe_exact_udlm_differs_from_exact_in_the_teacher_only():
    assert replace(DISTILL["exact-udlm"], recipe="exact", teacher="exact") == DISTILL["exact"]
