"""Discrete consistency distillation (DCD): gradients, rounds, resumption, several processes, and a learning test."""

import math
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from didi.apps.doctor import doctor
from didi.apps.train import distill
from didi.data.source import MarkovSource
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import low_discrepancy_times
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.evaluation.exact.rows import ExactRows
from didi.methods import METHODS, method_of
from didi.methods.base import Inputs
from didi.methods.dcd import Dcd, DcdConfig, interval
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.bundle import Bundle, load, save
from didi.process_group import ProcessGroup
from didi.recipes import PRETRAIN, VARIANTS, distillation_recipes, teacher_recipe, teacher_shape
from didi.sampling.options import SamplingOptions
from didi.training.trainer import make_trainer

from .distill_case import CPU, equal, weights

CONFIG = DcdConfig(
    data=DataConfig(corpus="markov", length=8),
    rounds=3,
    num_intervals=16,
    optimizer=OptimizerConfig(learning_rate=0.01, decay="constant", weight_decay=0.0),
    loop=LoopConfig(
        steps=6,
        batch_size=8,
        log_every=1,
        validate_every=3,
        validation_sequences=16,
        checkpoint_every=2,
        ema_decay=0.5,
    ),
)
SHAPE = {"vocab_size": 32, "mask_id": None, "length": 8, "is_time_conditioned": True}


@pytest.fixture(scope="module")
def uniform_teacher(make_dit):
    """A random uniform-state teacher for the 32 symbols of the Markov chain."""
    return Bundle(teacher=make_dit(seed=1, **SHAPE), process=Uniform(32))


@pytest.fixture
def make_dcd(source, uniform_teacher, tmp_path):
    def make(config=CONFIG, folder=tmp_path):
        return make_trainer(config, Inputs(source, CPU, folder, uniform_teacher))

    return make


@pytest.fixture
def gradient(make_dcd, make_dit):
    """Function with the gradient of the student at a step, for a student that differs from its target."""

    def of(config=CONFIG, step=0):
        method = make_dcd(config).method
        method.student.load_state_dict(make_dit(seed=2, **SHAPE).state_dict())
        for number in range(config.loop.accumulation):
            loss, _ = method._loss(method.prepare(step, number))
            (loss / config.loop.accumulation).backward()
        return flat_gradient(method.student)

    return of


def flat_gradient(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def with_loop(**changes):
    return replace(CONFIG, loop=replace(CONFIG.loop, **changes))


def rebuilt_gradient(config, step, source, teacher, student):
    """The gradient computed from the formulas: random draws by name, and Eq. 23."""
    generator = named_generator(config.seed, "dcd", step)
    times = low_discrepancy_times(8, generator, t_min=config.t_min)
    draws = torch.rand(8, 8, 2, dtype=torch.float64, generator=generator)
    length = {0: 1 / 16, 2: 1 / 8, 5: 1 / 4}[step]
    t, s = (times, (times - length).clamp(min=0))
    if config.boundary == "noise":
        t = (times + length).clamp(max=1)
        s = t - length
    x0, log_probs = source.batch(step, 8), []
    for network, time in ((student, t), (teacher, s)):
        is_replaced = draws[..., 0] < time[:, None]
        z = torch.where(is_replaced, (draws[..., 1] * 32).long(), x0)
        alpha = (1 - time).clamp(min=1e-3)
        log_probs.append(network(z, -alpha.log().float()).log_softmax(-1))
    of_student, of_target = log_probs[0], log_probs[1].detach()
    first, second = (of_student, of_target) if config.divergence == "backward" else (of_target, of_student)
    (first.exp() * (first - second)).sum(-1).mean().backward()
    return flat_gradient(student)


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("change", [{}, {"boundary": "data"}, {"divergence": "forward"}, {"t_min": 0.2}], ids=str)
def test_the_gradient_is_that_of_the_formulas(gradient, source, uniform_teacher, make_dit, step, change):
    config = replace(CONFIG, **change)
    expected = rebuilt_gradient(config, step, source, uniform_teacher.teacher, make_dit(seed=2, **SHAPE))
    torch.testing.assert_close(gradient(config, step), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "change",
    [
        {"num_intervals": 32},
        {"rounds": 2},
        {"boundary": "data"},
        {"divergence": "jeffreys"},
        {"t_min": 0.1},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_gradient(gradient, change):
    assert not torch.allclose(gradient(replace(CONFIG, **change), 2), gradient(CONFIG, 2), rtol=1e-3)


def test_an_interval_that_exceeds_the_range_is_moved_at_the_configured_end():
    times = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    t, s = interval(times, 0.25, "data")
    assert t.tolist() == times.tolist()
    assert s.tolist() == pytest.approx([0, 0, 0.25, 0.65, 0.75])
    t, s = interval(times, 0.25, "noise")
    assert t.tolist() == pytest.approx([0.25, 0.35, 0.75, 1, 1])
    assert s.tolist() == pytest.approx([0, 0.1, 0.5, 0.75, 0.75])


def test_tokens_replaced_at_s_are_replaced_alike_at_t_and_a_single_interval_ends_at_the_clean_sequence(
    make_dcd, source
):
    batch = make_dcd().method.prepare(0, 0)
    x0 = source.batch(0, 8)
    assert (batch.z_s == x0)[batch.z_t == x0].all()
    assert (batch.z_s == batch.z_t)[batch.z_s != x0].all()
    torch.testing.assert_close(batch.t - batch.s, torch.full_like(batch.t, 1 / 16))
    clean = make_dcd(replace(CONFIG, num_intervals=1, rounds=1)).method.prepare(0, 0)
    assert torch.equal(clean.z_s, x0)
    assert clean.t.eq(1).all()


def test_each_round_has_half_the_intervals_of_the_previous_one_and_as_many_steps():
    assert [CONFIG.intervals_at(step) for step in range(6)] == [16, 16, 8, 8, 4, 4]
    default, short = DcdConfig(), DcdConfig().limited(10)
    numbers = [default.intervals_at(step) for step in (0, 9999, 10_000, 39_999, 40_000, 49_999)]
    assert numbers == [512, 512, 256, 64, 32, 32]
    assert [short.intervals_at(step) for step in range(10)] == [512, 512, 256, 256, 128, 128, 64, 64, 32, 32]


@pytest.mark.slow
def test_the_target_of_a_round_is_the_student_at_the_end_of_the_previous_round(make_dcd):
    job = make_dcd()
    method, target = job.method, job.method.frozen["target"]
    start = weights(method.teacher)
    for step in range(6):
        job.step(step)
        if step in (1, 3):  # the last steps of the first two rounds
            renewed = weights(method.student)
            assert equal(weights(target), renewed)
            assert not equal(weights(target), weights(method.runtime.averaged()))
        elif step == 0:
            assert equal(weights(target), start)
        else:  # within a round, and after the last one
            assert equal(weights(target), renewed)
            assert not equal(weights(target), weights(method.student))
    assert equal(weights(method.teacher), start)


def test_a_target_is_renewed_before_a_last_round_of_one_step(make_dcd):
    job = make_dcd(replace(with_loop(steps=2), rounds=2))
    for step in range(2):
        job.step(step)
        if step == 0:
            renewed = weights(job.method.student)
        assert equal(weights(job.method.frozen["target"]), renewed)


def test_a_step_takes_four_passes_of_each_sequence(make_dcd):
    assert make_dcd().step(0)["sequence_passes"] == 8 * (3 + 1)  # a pass with a gradient counts as 3


@pytest.mark.slow
@pytest.mark.parametrize("stop_in", [1, 2, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_dcd, assert_resumes_exactly, stop_in):
    """Stopped after 2 and 4 steps, at the end of a round, and after 3 steps, within a round."""
    assert_resumes_exactly(lambda folder: make_dcd(folder=folder), CONFIG.loop, stop_in)


def test_a_checkpoint_without_the_target_is_refused(make_dcd):
    job = make_dcd()
    state = job.state_dict()
    del state["method"]["target"]
    with pytest.raises(UsageError, match="a checkpoint with method dcd holds a copy of the student; this one lacks"):
        job.load_state_dict(state)


def test_two_micro_batches_of_4_have_the_gradient_of_a_batch_of_8(gradient):
    for step in (0, 2):
        torch.testing.assert_close(
            gradient(with_loop(batch_size=4, accumulation=2), step), gradient(CONFIG, step), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_draw_the_rows_of_a_single_process(make_dcd, monkeypatch, size):
    method = make_dcd().method
    whole, parts = method.prepare(1, 0), []
    for rank in range(size):
        monkeypatch.setattr("didi.methods.dcd.process_group", lambda rank=rank: ProcessGroup(rank, size))
        parts.append(method.prepare(1, 0))
    for name in ("z_t", "t", "z_s", "s"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.slow
def test_two_processes_started_by_torchrun_train_the_student_of_one_process(make_dit, tmp_path):
    teacher = make_dit(seed=1, **SHAPE | {"length": 7, "vocab_size": 4})
    source = MarkovSource(7, seed=0, name="exact")
    save(Bundle(teacher=teacher, process=Uniform(4), tokenizer=source.tokenizer), tmp_path / "teacher")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        flags = ["--teacher", str(tmp_path / "teacher"), "--max-steps", "4", "--loop.batch-size", "4"]
        command = [*launcher, "-m", "didi", "distill", "exact", "--method", "dcd", "--out", str(tmp_path / name)]
        subprocess.run([*command, *flags], check=True, capture_output=True, timeout=300)
    one, two = (load(tmp_path / name / "bundle") for name in ("one", "two"))
    for a, b in zip(one.student.parameters(), two.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_bundle_has_the_moves_of_the_last_round_and_can_be_sampled(make_dcd, tmp_path):
    job = make_dcd()
    for step in range(6):
        job.step(step)
    save(job.bundle(), tmp_path / "bundle")
    bundle = load(tmp_path / "bundle")
    assert (bundle.intended_nfe, bundle.process, bundle.discriminator) == (4, Uniform(32), None)
    assert equal(weights(bundle.student), weights(job.method.runtime.averaged()))
    assert equal(weights(bundle.teacher), weights(job.method.teacher))


@pytest.mark.parametrize("sampler", ["ancestral", "greedy-tail"])
def test_divergences_are_finite_unless_a_sequence_of_the_data_has_probability_0(make_dit, sampler):
    """With the greedy tail some sequences have probability 0, so that KL(data || samples) is infinite."""
    network = make_dit(seed=3, vocab_size=4, mask_id=None, length=3, is_time_conditioned=True)
    rows, options = ExactRows(Bundle(student=network, process=Uniform(4))), SamplingOptions(sampler=sampler)
    divergences = rows(MarkovSource(3, seed=0, name="exact").chain, options, 2)
    assert 0 < divergences.kl < math.inf
    assert math.isinf(divergences.reverse_kl) == (sampler == "greedy-tail")


def test_the_defaults_are_those_of_the_publication():
    assert METHODS["dcd"] is Dcd is method_of(CONFIG)
    defaults = asdict(DcdConfig())
    published = {"rounds": 5, "num_intervals": 512, "divergence": "backward", "boundary": "noise", "t_min": 1e-3}
    assert {name: defaults[name] for name in published} == published
    optimizer = defaults["optimizer"]
    assert (optimizer["learning_rate"], optimizer["warmup_steps"], optimizer["decay"], optimizer["weight_decay"]) == (
        6e-5, 500, "constant", 0.0,
    )  # fmt: skip
    loop = defaults["loop"]
    assert (loop["steps"], loop["batch_size"], loop["ema_decay"]) == (50_000, 128, 0.999)


def test_recipes_have_a_uniform_state_teacher_and_the_length_of_its_data():
    recipes = {name: config for (name, method), config in VARIANTS.items() if method == "dcd"}
    assert set(recipes) == {"exact", "markov", "tiny-news", "owt-169m"}
    for name, config in recipes.items():
        assert config == distillation_recipes("dcd")[name]
        assert (config.recipe, config.data.length) == (name, PRETRAIN[f"{name}-duo"].data.length)
    assert {name: config.teacher for name, config in recipes.items()} == {
        "exact": "exact-udlm", "markov": "markov-duo", "tiny-news": "", "owt-169m": "",
    }  # fmt: skip
    assert {name: config.intervals_at(config.loop.steps - 1) for name, config in recipes.items()} == {
        "exact": 4, "markov": 8, "tiny-news": 8, "owt-169m": 32,
    }  # fmt: skip
    loop = recipes["owt-169m"].loop
    assert (loop.steps, loop.batch_size * loop.accumulation, loop.ema_decay) == (50_000, 128, 0.999)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DcdConfig(rounds=0), "rounds is 1 or more; got 0"),
        (lambda: DcdConfig(num_intervals=0), "num_intervals is 1 or more; got 0"),
        (
            lambda: DcdConfig(rounds=4, num_intervals=12),
            r"a multiple of 2\^\(rounds - 1\), .*; got 12 and 4 rounds: set it to 8 times the moves of the student",
        ),
        (lambda: DcdConfig(t_min=1.0), r"t_min lies in \[0, 1\); got 1.0"),
        (lambda: DcdConfig(loop=LoopConfig(fsdp=True)), "method dcd cannot be combined with loop.fsdp"),
    ],
)
def test_contradictory_settings_are_refused_by_name(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_teacher_of_masked_diffusion_is_refused(source, teacher, tmp_path):
    with pytest.raises(UsageError, match="method dcd distils teachers of uniform diffusion; the process of"):
        make_trainer(CONFIG, Inputs(source, CPU, tmp_path, teacher))


def test_a_recipe_without_a_teacher_is_refused(tmp_path):
    with pytest.raises(UsageError, match="teacher") as caught:
        distill(["tiny-news", "--method", "dcd", "--out", str(tmp_path / "run")])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def trained_teacher():
    """A small teacher of the chain ``exact`` with four positions, whose few-move samples are poor."""
    source = MarkovSource(4, seed=0, name="exact")
    config = PretrainConfig(
        data=DataConfig(corpus="exact", length=4),
        process="uniform",
        network=NetworkConfig(hidden_size=32, num_blocks=2, num_heads=2, cond_dim=8, is_time_conditioned=True),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=10, decay="cosine"),
        loop=LoopConfig(steps=200, batch_size=128, ema_decay=0.95),
    )
    job = make_trainer(config, Inputs(source, CPU))
    for step in range(200):
        job.step(step)
    return source, Bundle(teacher=job.bundle().teacher, process=Uniform(4))


@pytest.mark.slow
def test_training_lowers_the_exact_divergence_of_few_moves(trained_teacher, tmp_path):
    source, teacher = trained_teacher
    config = DcdConfig(
        data=DataConfig(corpus="exact", length=4),
        rounds=2,
        num_intervals=8,
        optimizer=OptimizerConfig(learning_rate=1e-3, decay="constant", weight_decay=0.0),
        loop=LoopConfig(steps=60, batch_size=64, ema_decay=0.95),
    )
    job = make_trainer(config, Inputs(source, CPU, tmp_path, teacher))

    def divergences():
        rows = ExactRows(job.bundle())
        return [rows(source.chain, SamplingOptions(role="student"), num_moves).kl for num_moves in (2, 4)]

    before = divergences()
    for step in range(60):
        job.step(step)
    after = divergences()
    assert after[0] < 0.85 * before[0]
    assert after[1] < 0.95 * before[1]


@pytest.mark.parametrize("name", ["markov", "tiny-news"])
def test_the_teacher_recipe_of_dcd_is_that_of_uniform_state_diffusion(name):
    assert teacher_recipe(distillation_recipes("dcd")[name]) == f"{name}-duo"
    assert teacher_recipe(distillation_recipes("didi")[name]) == name
    assert teacher_shape(f"{name}-duo").mask_id is None


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_doctor_estimates_memory_without_a_teacher(capsys):
    flags = ["--teacher", "", "--loop.batch-size", "2", "--max-steps", "4"]
    doctor(["exact", "--method", "dcd", "--device", "h100", *flags])
    assert "distill" in capsys.readouterr().out
