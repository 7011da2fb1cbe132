"""Self-distillation through time (SDTT): gradients, rounds, resumption, and a learning test."""

import copy
from dataclasses import replace

import pytest
import torch

from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import low_discrepancy_times, schedule_from_name
from didi.diffusion.score import ScoreAbsorbing
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.methods.sdtt import SdttConfig, log_probs_where
from didi.methods.settings import DataConfig, LoopConfig, OptimizerConfig
from didi.models.bundle import Bundle, bundled_names
from didi.objectives.sdtt import distillation_loss
from didi.recipes import distillation_recipes

from .distill_case import equal, weights
from .observed_step import copied, distilled, pretrained
from .test_learning import DATA, PRETRAIN, TinySource, divergence_from_data

CONFIG = SdttConfig(
    data=DataConfig(corpus="markov", length=8),
    rounds=2,
    first_step=16,
    optimizer=OptimizerConfig(learning_rate=1e-2, decay="constant", weight_decay=0.0),
    loop=LoopConfig(
        steps=4, batch_size=8, log_every=1, validate_every=2, validation_sequences=16, checkpoint_every=1, ema_decay=0.5
    ),
)


def with_loop(**changes):
    return replace(CONFIG, loop=replace(CONFIG.loop, **changes))


def flat(values):
    return torch.cat([value.flatten() for value in values])


def gradient_of_step(job, step):
    """Student before a step, its gradient and the metrics; the student has other weights than its teacher."""
    generator = torch.Generator().manual_seed(7)
    student = job.method.student
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator) / max(1, weight.shape[-1]) ** 0.5)
    before, gradients = copied({"student": student})["student"], []
    clip = torch.nn.utils.clip_grad_norm_

    def recorded(parameters, *args):
        parameters = list(parameters)
        gradients.append(flat([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]))
        return clip(parameters, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", recorded)
        metrics = job.step(step)
    (grad,) = gradients
    return before, grad, metrics


def rebuilt_gradient(config, step, source, student, teacher, process):
    """Loss and gradient from a direct implementation: full sequences and all positions at every step."""
    num, num_steps = config.loop.batch_size * config.loop.accumulation, config.teacher_steps
    x0 = source.batch(step, num)
    generator = named_generator(config.seed, "sdtt", step)
    t = low_discrepancy_times(num, generator)
    u, *uniforms = torch.rand(num_steps, *x0.shape, dtype=torch.float64, generator=generator)
    dt = config.teacher_steps ** (step * config.rounds // config.loop.steps) / config.first_step
    z_t = z = process.corrupt(x0, t, u[..., None])
    is_masked = z_t == process.mask_id

    def log_probs(network, states, times):
        return process.log_probs(network(states, process.noise_level(network, times)))

    target, now = None, t
    with torch.no_grad():
        for number in range(num_steps):
            of_teacher = log_probs(teacher, z, now)
            later = (now - dt).clamp(min=0)
            alpha = torch.where(later > 0, process.schedule.alpha(later), 1.0)
            is_still_masked = z == process.mask_id
            target = of_teacher if target is None else of_teacher.where(is_still_masked[..., None], target)
            if number + 1 < num_steps:
                drawn = sample_categorical(of_teacher.flatten(0, 1), uniforms[number].flatten()).view_as(z)
                z, now = torch.where(is_still_masked & ~is_masked_at(u, alpha), drawn, z), later
    of_student = log_probs(student, z_t, t)
    loss = distillation_loss(config.loss, target[is_masked], of_student[is_masked]).mean()
    grads = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    return float(loss.detach()), flat(
        [torch.zeros_like(p) if g is None else g for p, g in zip(student.parameters(), grads, strict=True)]
    )


VARIED = [
    CONFIG,
    replace(CONFIG, seed=1),
    replace(CONFIG, teacher_steps=3, first_step=18),
    replace(CONFIG, teacher_steps=4, first_step=16),
    replace(CONFIG, first_step=4),
    replace(CONFIG, rounds=4),
    *(replace(CONFIG, loss=loss) for loss in ("forward-kl", "mse", "tv")),
]


@pytest.mark.slow
def test_the_gradient_is_that_of_the_plain_algorithm_and_every_setting_changes_it(make_job, source, teacher):
    gradients = []
    for config in VARIED:
        job = make_job(config)
        student, gradient, metrics = gradient_of_step(job, 2)  # of the second round of two, of the third of four
        loss, expected = rebuilt_gradient(config, 2, source, student, teacher.teacher, teacher.process)
        assert expected.norm() > 1e-4
        assert (gradient - expected).norm() < 1e-4 * expected.norm()
        assert metrics["distillation_loss"] == pytest.approx(loss, rel=1e-4)
        assert metrics["learning_rate"] == 1e-2
        gradients.append(gradient)
    for number, gradient in enumerate(gradients):
        for other in gradients[:number]:
            assert (gradient - other).norm() > 1e-2 * gradient.norm()


@pytest.mark.parametrize("schedule", ["log-linear-eps", "cosine", "geometric"])
@pytest.mark.parametrize("is_sedd", [False, True], ids=["masked", "sedd"])
def test_the_gradient_for_other_schedules_and_teachers_is_that_of_the_plain_algorithm(
    make_job, make_dit, source, schedule, is_sedd
):
    process = Absorbing(32, schedule_from_name(schedule))
    network = make_dit(vocab_size=33, length=8, seed=1, is_time_conditioned=True)
    bundle = Bundle(teacher=network, process=ScoreAbsorbing(32, process.schedule) if is_sedd else process)
    config = replace(CONFIG, first_step=4)
    job = make_job(config, bundle=bundle)
    student, gradient, _ = gradient_of_step(job, 3)
    _, expected = rebuilt_gradient(config, 3, source, student, network, process)
    assert expected.norm() > 1e-4
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
    assert job.bundle().process == process


@pytest.mark.slow
def test_micro_batches_change_neither_gradient_nor_loss(make_job):
    (_, expected, expected_metrics), *others = (
        gradient_of_step(make_job(with_loop(batch_size=8 // num, accumulation=num)), 1) for num in (1, 2, 8)
    )
    for _, gradient, metrics in others:
        assert (gradient - expected).norm() < 1e-5 * expected.norm()
        assert metrics["distillation_loss"] == pytest.approx(float(expected_metrics["distillation_loss"]), rel=1e-5)


def test_a_batch_without_masks_has_no_gradient(make_job):
    job = make_job(CONFIG)
    job.method.prepare = lambda *_: replace(batch, is_target_step=torch.zeros_like(batch.is_target_step))
    batch = type(job.method).prepare(job.method, 0, 0)
    metrics = job.step(0)
    assert float(metrics["distillation_loss"]) == 0 == float(metrics["gradient_norm"])


def test_rows_without_targets_do_not_pass_through_the_network(make_job):
    job = make_job(replace(CONFIG, loop=replace(CONFIG.loop, batch_size=32)))
    is_target_step = job.method.prepare(0, 0).is_target_step
    first, last, both = (int(positions.any(1).sum()) for positions in (*is_target_step, is_target_step.any(0)))
    assert 0 < first < both < 32
    assert last > 0
    assert job.step(0)["sequence_passes"] == first + last + 3 * both  # of the teacher, and of the student


@pytest.mark.parametrize("expected", [[0, 0, 0, 3, 3, 5, 5], [0, 0, 2, 3]], ids=["7 steps", "4 steps"])
def test_after_a_round_the_teacher_has_the_weights_of_the_student(make_job, expected):
    job = make_job(replace(CONFIG, rounds=3, loop=replace(CONFIG.loop, steps=len(expected))))
    first = weights(job.method.teacher)
    of_round, students = job.method.frozen["round_teacher"], [first]
    teachers = []
    for step in range(len(expected)):  # a round begins where the number changes
        teachers.append(weights(of_round))
        job.step(step)
        students.append(weights(job.method.student))
    origins = [next(n for n, student in enumerate(students) if equal(student, teacher)) for teacher in teachers]
    assert origins == expected
    last = students[expected[-1]]
    assert equal(weights(of_round), last)
    assert not equal(last, weights(job.averaged()))
    bundle = job.bundle()
    assert bundle.intended_nfe == 2
    assert equal(weights(bundle.teacher), first)
    assert equal(weights(bundle.student), weights(job.averaged()))


def test_the_target_is_that_of_the_teacher_of_the_round(make_job, source):
    job = make_job(CONFIG)
    for step in range(2):
        job.step(step)
    current, process = copy.deepcopy(job.method.student), job.method.process
    student, gradient, _ = gradient_of_step(job, 2)
    _, expected = rebuilt_gradient(CONFIG, 2, source, student, current, process)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("stop_in", [0, 1, 2], ids=["in a round", "at its end", "in the next"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_job, assert_resumes_exactly, stop_in):
    assert_resumes_exactly(lambda folder: make_job(CONFIG, folder), CONFIG.loop, stop_in)


def test_a_checkpoint_without_the_teacher_of_the_round_is_refused(make_job):
    job = make_job(CONFIG)
    state = job.state_dict()
    del state["method"]["round_teacher"]
    with pytest.raises(
        UsageError, match="a checkpoint with method sdtt holds a copy of the student; this one lacks its"
    ):
        make_job(CONFIG).load_state_dict(state)


def test_the_learning_rate_is_scheduled_over_the_whole_run(make_job):
    optimizer = replace(CONFIG.optimizer, decay="linear", warmup_steps=1)
    job = make_job(replace(CONFIG, optimizer=optimizer))
    rates = [float(job.step(step)["learning_rate"]) for step in range(4)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2 * 2 / 3, 1e-2 / 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds is 1 or more; got 0"),
        ({"teacher_steps": 1}, "teacher_steps is 2 or more; got 1"),
        (
            {"loop": LoopConfig(fsdp=True)},
            "method sdtt cannot be combined with loop.fsdp; got both: turn",
        ),
        ({"first_step": 2}, r"first_step is a multiple of teacher_steps\^rounds, here 4; got 2: set it to 4, or"),
        ({"first_step": 18}, r"teacher_steps\^rounds, here 4; got 18: set it to 16, or change rounds"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(CONFIG, **changes)


def test_a_teacher_of_uniform_state_diffusion_is_refused(make_job, make_dit):
    network = make_dit(vocab_size=32, mask_id=None, length=8, is_time_conditioned=True)
    with pytest.raises(UsageError, match="method sdtt distils teachers of absorbing diffusion; the process of"):
        make_job(CONFIG, bundle=Bundle(teacher=network, process=Uniform(32)))


def test_recipes_have_published_settings_and_the_moves_of_their_corpora():
    recipes = distillation_recipes("sdtt")
    num_moves = {"exact": 4, "markov": 8, "tiny-news": 8, "owt-169m": 8}
    assert {name: recipes[name].num_moves for name in num_moves} == num_moves
    assert all(recipes[name].teacher in ["", *bundled_names()] for name in num_moves)
    paper = recipes["owt-169m"]
    assert (paper.rounds, paper.first_step, paper.teacher_steps, paper.loss) == (7, 1024, 2, "kl")
    assert (paper.loop.steps, paper.loop.batch_size * paper.loop.accumulation) == (70_000, 128)
    assert (paper.optimizer.learning_rate, paper.optimizer.weight_decay, paper.loop.ema_decay) == (6e-5, 0, 0.9999)
    assert (paper.optimizer.decay, paper.optimizer.clip_norm) == ("constant", 1.0)
    default = SdttConfig.__dataclass_fields__["optimizer"].default_factory()
    assert (default.learning_rate, default.decay, default.weight_decay) == (6e-5, "constant", 0)


def test_log_probs_of_no_positions_are_empty_and_have_a_gradient(make_dit):
    z, none = torch.full((2, 8), 32), torch.zeros(2, 8, dtype=torch.bool)
    network = make_dit(vocab_size=33, length=8)
    log_probs = log_probs_where(network, Absorbing(32), z, torch.ones(2, dtype=torch.float64), none)
    assert log_probs.shape == (0, 33)
    log_probs.sum().backward()


@pytest.mark.slow
def test_a_short_distillation_lowers_the_divergence_of_the_sampler(tmp_path):
    source = TinySource()
    teacher = pretrained(PRETRAIN, source)
    config = SdttConfig(
        data=DATA,
        rounds=3,
        first_step=16,
        optimizer=OptimizerConfig(learning_rate=1e-3, decay="constant", weight_decay=0.0),
        loop=LoopConfig(steps=210, batch_size=128, ema_decay=0.95),
    )
    student = distilled(config, source, teacher, tmp_path).student
    for num_moves, most in ((1, 0.95), (2, 0.92), (4, 0.95)):  # measured ratios: 0.89, 0.86, 0.89
        before, after = (divergence_from_data(net, source.chain, num_moves) for net in (teacher.teacher, student))
        assert after < most * before
