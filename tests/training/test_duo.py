"""Duo's curriculum: gradients, its limits, settings, resumption, several processes, and a learning test."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from didi.data.source import MarkovSource
from didi.diffusion.gaussian import gamma_at, relaxed, uniform_alpha, uniform_alpha_prime
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import low_discrepancy_times
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.methods import METHODS, method_of
from didi.methods.base import Inputs
from didi.methods.duo import CurriculumConfig, Duo, DuoConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.process_group import ProcessGroup
from didi.recipes import PRETRAIN
from didi.training.trainer import make_trainer

from .observed_step import observe_pretraining

CPU = torch.device("cpu")
NUM = 32
CONFIG = DuoConfig(
    data=DataConfig(corpus="markov", length=8),
    network=NetworkConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8, dropout=0.1, is_time_conditioned=True),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2, decay="cosine"),
    curriculum=CurriculumConfig(end=4, start=1, log10_tau_start=-1.0, log10_tau_end=-2.0),
    loop=LoopConfig(
        steps=6,
        batch_size=4,
        accumulation=2,
        log_every=1,
        validate_every=3,
        validation_sequences=32,
        checkpoint_every=4,
        ema_decay=0.9,
    ),
)
NO_DROPOUT = replace(CONFIG, network=replace(CONFIG.network, dropout=0.0), loop=replace(CONFIG.loop, accumulation=1))


def with_curriculum(config, **changes):
    return replace(config, curriculum=replace(config.curriculum, **changes))


def gradient(config, source, step=0):
    """Gradient of a step for a network with random weights in every layer."""
    (update,) = observe_pretraining(config, [step], source).updates
    return torch.cat([value.flatten() for value in update.gradient.values()])


def rebuilt_gradient(config, source, step, *, is_hard=False):
    """The gradient of a step of the curriculum, from pure functions and the integral of the weight."""
    network = observe_pretraining(config, [], source).before["network"]
    network.train()
    seed, curriculum = config.seed, config.curriculum
    times = low_discrepancy_times(4, named_generator(seed, "pretrain", step, 0), t_min=config.t_min)
    first, last = gamma_at(torch.tensor([curriculum.alpha_max, curriculum.alpha_min]), NUM)
    gamma = first + times * (last - first)
    alpha, slope = uniform_alpha(gamma, NUM), (last - first) * uniform_alpha_prime(gamma, NUM)
    noise = [torch.randn(8, NUM, generator=named_generator(seed, "gaussian", step, 0, row)) for row in range(4)]
    x0 = source.batch(step, 4)
    z, soft = relaxed(x0, gamma, torch.stack(noise), curriculum.tau(step))
    # A log-linear process has any alpha at time 1 - alpha.
    process, t = Uniform(NUM), 1 - alpha
    logits = network(z if is_hard else soft, -alpha.log().float())
    terms = process.loss_terms(logits.flatten(0, 1), x0, z, t).sum(-1)
    ((-slope / alpha).float() * terms).sum().div(x0.numel()).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("step", [0, 2])
def test_the_gradient_of_the_curriculum_is_that_of_pure_functions(source, step):
    torch.testing.assert_close(
        gradient(NO_DROPOUT, source, step), rebuilt_gradient(NO_DROPOUT, source, step), rtol=1e-4, atol=1e-6
    )


def test_as_the_temperature_goes_to_0_the_gradient_is_that_of_hard_tokens(source):
    cold = with_curriculum(NO_DROPOUT, log10_tau_start=-9.0)
    hard = rebuilt_gradient(cold, source, 0, is_hard=True)
    torch.testing.assert_close(gradient(cold, source), hard, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(gradient(NO_DROPOUT, source), hard, rtol=0.05)


@pytest.mark.slow
def test_steps_after_the_curriculum_minimise_the_nelbo(source):
    plain = {name: getattr(NO_DROPOUT, name) for name in ("data", "network", "optimizer", "loop", "process")}
    plain = PretrainConfig(**plain)
    for step, is_same in ((3, False), (4, True)):
        assert torch.equal(gradient(NO_DROPOUT, source, step), gradient(plain, source, step)) == is_same
    assert torch.equal(gradient(with_curriculum(NO_DROPOUT, end=0, start=0), source), gradient(plain, source))


@pytest.mark.parametrize(
    "change",
    [
        {"log10_tau_start": -0.5},
        {"log10_tau_end": -0.5},
        {"start": 2},
        {"end": 8},
        {"alpha_max": 0.8},
        {"alpha_min": 0.2},
        {"gamma_min": -3.0, "gamma_max": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_gradient(source, change):
    assert not torch.allclose(
        gradient(with_curriculum(NO_DROPOUT, **change), source, 2), gradient(NO_DROPOUT, source, 2)
    )


def test_the_temperature_is_constant_then_log_linear():
    temperatures = [CONFIG.curriculum.tau(step) for step in range(4)]
    assert temperatures == pytest.approx([10**power for power in (-1, -1, -4 / 3, -5 / 3)])
    assert CurriculumConfig().tau(400_000) == pytest.approx(1e-3)


def test_the_range_is_given_by_signal_rates_or_by_gammas():
    by_rates = CurriculumConfig().schedule(50_257)
    ends = by_rates.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.95, 0.05], dtype=torch.float64))
    assert (by_rates.gamma_min, by_rates.gamma_max) == pytest.approx((-3.55, -1.85), abs=0.02)
    by_gammas = CurriculumConfig(gamma_min=-3.5, gamma_max=-1.75).schedule(30_522)
    assert (by_gammas.num_symbols, by_gammas.gamma_min, by_gammas.gamma_max) == (30_522, -3.5, -1.75)


def test_a_shortened_run_has_a_curriculum_shortened_in_proportion():
    long = with_curriculum(CONFIG, end=400, start=100)
    long = replace(long, loop=replace(long.loop, steps=1000))
    cut = long.limited(50)
    assert (cut.loop.steps, cut.curriculum.start, cut.curriculum.end) == (50, 5, 20)
    assert cut == replace(long, loop=cut.loop, curriculum=cut.curriculum)


def test_the_defaults_are_those_of_pretraining_with_uniform_states_and_the_published_curriculum():
    curriculum = {"end": 500_000, "start": 0, "log10_tau_start": -3.0, "log10_tau_end": -3.0,
                  "gamma_min": None, "gamma_max": None, "alpha_max": 0.95, "alpha_min": 0.05}  # fmt: skip
    assert asdict(DuoConfig()) == asdict(PretrainConfig()) | {"process": "uniform", "curriculum": curriculum}


def test_the_class_of_the_settings_determines_the_method():
    assert METHODS["duo"] is Duo is method_of(CONFIG)
    assert method_of(PretrainConfig()) is METHODS["elbo"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(source, assert_resumes_exactly):
    assert_resumes_exactly(lambda folder: make_trainer(CONFIG, Inputs(source, CPU)), CONFIG.loop, stop_in=2)


def test_micro_batches_are_averaged(source):
    """The gradient of 2 x 4 sequences is the mean over both halves, which have different noise."""
    config = replace(NO_DROPOUT, loop=replace(NO_DROPOUT.loop, accumulation=2))
    job = make_trainer(config, Inputs(source, CPU))
    network = job.method.trained["network"]
    for batch in (job.method.prepare(0, number) for number in range(2)):
        (job.method._curriculum(batch)[0] / 2).backward()
    norm = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm()
    network.zero_grad()
    assert float(job.step(0)["gradient_norm"]) == pytest.approx(float(norm), rel=1e-5)
    first, second = (job.method.prepare(0, number) for number in range(2))
    assert torch.equal(torch.cat([first.x0, second.x0]), source.batch(0, 8))
    assert not torch.equal(first.t, second.t)


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_draw_the_rows_of_a_single_process(source, monkeypatch, size):
    method = make_trainer(NO_DROPOUT, Inputs(source, CPU)).method
    whole, parts = method.prepare(1, 0), []
    for rank in range(size):
        monkeypatch.setattr("didi.methods.duo.process_group", lambda rank=rank: ProcessGroup(rank, size))
        parts.append(method.prepare(1, 0))
    for name in ("x0", "t", "z", "weight", "soft"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert [part.num_predicted for part in parts] == [part.z.numel() for part in parts]


def test_in_bf16_relaxed_tokens_are_embedded_in_float32_and_give_nearly_the_same_loss(source):
    """The residual stream of soft inputs is as precise as that of tokens."""
    losses = []
    for precision in ("float32", "bf16"):
        job = make_trainer(replace(NO_DROPOUT, loop=replace(NO_DROPOUT.loop, precision=precision)), Inputs(source, CPU))
        batch = job.method.prepare(0, 0)
        with job.autocast():
            assert job.method.trained["network"].embed(batch.soft).dtype == torch.float32
        losses.append(float(job.step(0)["relaxed_nelbo"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("elements", [1, 3 * 8 * NUM])
def test_rows_drawn_in_chunks_equal_those_drawn_at_once(source, monkeypatch, elements):
    method = make_trainer(NO_DROPOUT, Inputs(source, CPU)).method
    whole = method.prepare(1, 0)
    monkeypatch.setattr("didi.diffusion.rowwise.CACHE_ELEMENTS", elements)
    part = method.prepare(1, 0)
    assert torch.equal(part.z, whole.z)
    assert torch.equal(part.soft, whole.soft)


def test_processes_draw_different_dropout(source, monkeypatch):
    method = make_trainer(CONFIG, Inputs(source, CPU)).method
    monkeypatch.setattr("didi.methods.elbo.process_group", lambda: SimpleNamespace(rank=3))
    method.prepare(2, 1)
    assert torch.initial_seed() == derive_seed(CONFIG.seed, "dropout", 2, 1, 3)


def test_the_log_distinguishes_the_curriculum_loss_from_the_nelbo(source):
    job = make_trainer(CONFIG, Inputs(source, CPU))
    assert "relaxed_nelbo" in job.step(3)
    assert "nelbo" not in job.step(3)
    assert "nelbo" in job.step(4)


def test_validation_equals_that_of_uniform_state_pretraining(source):
    duo, plain = (
        make_trainer(replace(PRETRAIN[name], data=CONFIG.data, loop=CONFIG.loop), Inputs(source, CPU))
        for name in ("markov-duo", "markov-udlm")
    )
    metrics = duo.validate()
    assert metrics == plain.validate()
    # A new network predicts the uniform distribution; the estimate has few draws.
    assert metrics["validation_nelbo"] == pytest.approx(math.log(NUM), rel=0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DuoConfig(process="absorbing"), "method duo needs process uniform; got absorbing"),
        (lambda: DuoConfig(model="autoregressive"), "model autoregressive needs process absorbing"),
        (lambda: CurriculumConfig(end=-1), "end is 0 or more; got -1"),
        (lambda: CurriculumConfig(start=3, end=2), "curriculum.start is at most curriculum.end; got 3 and 2"),
        (lambda: CurriculumConfig(log10_tau_end=-31.0), r"lie in \[-30, 30\]; got -3.0 and -31.0"),
        (lambda: CurriculumConfig(alpha_max=0.1, alpha_min=0.2), "alpha_min is less than curriculum.alpha_max"),
        (lambda: CurriculumConfig(alpha_max=0.1, alpha_min=0.1), "alpha_min is less than curriculum.alpha_max"),
        (lambda: CurriculumConfig(alpha_max=1.0), r"both in \(0, 1\); got 0.05 and 1.0"),
        (lambda: CurriculumConfig(gamma_min=-3.0), "are set together; got -3.0 and None: set both, or neither"),
        (lambda: CurriculumConfig(gamma_min=1.0, gamma_max=1.0), "gamma_min is less than curriculum.gamma_max; got"),
        (lambda: CurriculumConfig(log10_tau_start=math.nan), "log10_tau_start is a finite number; got nan"),
    ],
)
def test_contradictory_settings_are_refused_by_name(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_training_with_the_curriculum_lowers_the_nelbo():
    config = PRETRAIN["exact-duo"].limited(140)
    loop = replace(config.loop, batch_size=32, ema_decay=0.9, validation_sequences=512)
    network = replace(config.network, hidden_size=32, num_blocks=2, num_heads=2)
    config = replace(config, loop=loop, network=network, optimizer=replace(config.optimizer, warmup_steps=10))
    job = make_trainer(config, Inputs(MarkovSource(7, seed=0, name="exact"), CPU))
    values = [job.validate()["validation_nelbo"]]
    for step in range(140):
        job.step(step)
        if step + 1 in (70, 140):
            values.append(job.validate()["validation_nelbo"])
    assert config.curriculum.end == 70
    assert values[1] < values[0] - 0.2
    assert values[2] < values[1]
