"""Pre-training: the NELBO and its gradient, validation, resumption, the bundle, and the autoregressive baseline."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import Cosine, low_discrepancy_times, schedule_from_name
from didi.diffusion.uniform import Uniform
from didi.methods.base import Inputs
from didi.methods.elbo import PretrainConfig, losses
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.nelbo import nats_per_token, nelbo_draws
from didi.training.trainer import make_trainer

CPU = torch.device("cpu")
PROCESS = Absorbing(32)
CONFIG = PretrainConfig(
    data=DataConfig(corpus="markov", length=8),
    network=NetworkConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8, dropout=0.1),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2, decay="cosine"),
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


def nelbo_of(network, x0, process, generator, t_min=1e-3):
    """One-sample NELBO of each sequence at low-discrepancy times."""
    t = low_discrepancy_times(len(x0), generator, t_min=t_min)
    draws = torch.rand(*x0.shape, 1, dtype=torch.float64, generator=generator)
    return process.loss_weight(t).float() * losses(network, process, x0, t, process.corrupt(x0, t, draws)).sum(-1)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(source, assert_resumes_exactly):
    assert_resumes_exactly(lambda folder: make_trainer(CONFIG, Inputs(source, CPU)), CONFIG.loop, stop_in=2)


@pytest.mark.slow
def test_the_seed_determines_the_run(source, assert_same_state):
    def after_two_steps(seed):
        job = make_trainer(replace(CONFIG, seed=seed), Inputs(source, CPU))
        for step in range(2):
            job.step(step)
        return job.state_dict()

    assert_same_state(after_two_steps(3), after_two_steps(3))
    first, second = (after_two_steps(seed)["network"]["weights"]["vocab_embed.embedding"] for seed in (3, 4))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_training_lowers_the_validation_nelbo(source):
    job = make_trainer(replace(CONFIG, loop=replace(CONFIG.loop, steps=30)), Inputs(source, CPU))
    before = job.validate()["validation_nelbo"]  # the same times and masks as after training
    for step in range(30):
        job.step(step)
    assert job.validate()["validation_nelbo"] < before - 0.03


def test_a_new_network_is_uniform_over_the_symbols(source):
    network = make_trainer(CONFIG, Inputs(source, CPU)).method.trained["network"].eval()
    value = nats_per_token(network, Absorbing(32), source.validation[:128], batch_size=128)
    assert value == pytest.approx(math.log(32), rel=1e-5)  # exact, since n masks have the weight 8 / n


def test_the_logged_nelbo_is_per_token_over_all_micro_batches(source):
    job = make_trainer(replace(CONFIG, network=replace(CONFIG.network, dropout=0.0)), Inputs(source, CPU))
    network = copy.deepcopy(job.method.trained["network"])
    rows = source.batch(0, 8)
    metrics = job.step(0)
    parts = [
        nelbo_of(network, batch, PROCESS, named_generator(CONFIG.seed, "pretrain", 0, number)).sum()
        for number, batch in enumerate(rows.split(4))
    ]
    loss = sum(parts) / rows.numel()
    torch.testing.assert_close(metrics["nelbo"], loss.detach())
    loss.backward()  # the gradient is that of the logged loss
    norm = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm()
    assert float(metrics["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.slow
def test_validation_is_deterministic(source):
    job = make_trainer(CONFIG, Inputs(source, CPU))
    job.step(0)
    first = job.validate()
    torch.manual_seed(123)
    torch.rand(5)
    assert job.validate() == first
    job.step(1)
    assert job.validate() != first


@pytest.mark.parametrize(("rank", "others"), [(0, ()), (3, (3,))])
def test_processes_draw_different_dropout(source, monkeypatch, rank, others):
    method = make_trainer(CONFIG, Inputs(source, CPU)).method
    group = SimpleNamespace(rank=rank, local_rows=lambda rows: rows)
    monkeypatch.setattr("didi.methods.elbo.process_group", lambda: group)
    method.prepare(2, 1)
    assert torch.initial_seed() == derive_seed(CONFIG.seed, "dropout", 2, 1, *others)


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
@torch.no_grad()
def test_the_sampled_nelbo_has_the_exact_mean(make_dit, schedule):
    network, schedule, t_min = make_dit(seed=3), schedule_from_name(schedule), 0.3
    x0 = torch.tensor([[2, 0]])
    log_probs = {z: network(torch.tensor([z]))[0, :, :3].log_softmax(-1) for z in ((3, 3), (2, 3), (3, 0))}
    two_masks = -log_probs[3, 3][0, 2] - log_probs[3, 3][1, 0]
    one_mask = -log_probs[2, 3][1, 0] - log_probs[3, 0][0, 2]
    # With u = 1 - alpha_t the weight is du / u, and the masks of one position, or of both, have u (1 - u), or u^2.
    u_min = 1 - float(schedule.alpha(torch.tensor(t_min)))
    expected = (one_mask * (1 - u_min) ** 2 / 2 + two_masks * (1 - u_min**2) / 2) / (1 - t_min)
    estimates = nelbo_of(network, x0.expand(20_000, 2), Absorbing(3, schedule), named_generator("nelbo"), t_min=t_min)
    error = float(estimates.std()) / 20_000**0.5
    assert error < 0.01 * expected
    assert float(estimates.mean()) == pytest.approx(float(expected), abs=4 * error)


@torch.no_grad()
def test_the_nelbo_does_not_depend_on_the_logit_of_the_mask(make_dit):
    network = make_dit(seed=3)
    x0 = torch.randint(3, (64, 2), generator=named_generator("x0"))
    before = nelbo_of(network, x0, Absorbing(3), named_generator("a"))
    network.output_layer.linear.bias[3] += 50
    torch.testing.assert_close(nelbo_of(network, x0, Absorbing(3), named_generator("a")), before)


@torch.no_grad()
def test_a_network_conditioned_on_time_is_trained_with_its_noise_level(make_dit):
    conditioned = make_dit(seed=3, is_time_conditioned=True)
    unconditioned = make_dit(seed=3, is_time_conditioned=False)
    x0 = torch.randint(3, (64, 2), generator=named_generator("x0"))
    first, second = (
        nelbo_of(network, x0, Absorbing(3), named_generator("a")) for network in (conditioned, unconditioned)
    )
    assert not torch.allclose(first, second)


@torch.no_grad()
def test_validation_covers_every_row(source, make_dit):
    network = make_dit(vocab_size=33, length=8)
    rows = source.validation[:10]
    parts = [
        nelbo_draws(network, Absorbing(32), Canvas.free(row[None]), 1, [named_generator(0, "validation", number)])
        for number, row in enumerate(rows)
    ]
    value = nats_per_token(network, Absorbing(32), rows, batch_size=4)
    assert value == pytest.approx(float(sum(parts)) / 80, rel=1e-6)


def test_the_bundle_holds_the_averaged_teacher(source):
    job = make_trainer(CONFIG, Inputs(source, CPU))
    for step in range(4):
        job.step(step)
    bundle = job.bundle()
    assert bundle.student is None
    assert bundle.tokenizer is source.tokenizer
    assert not bundle.teacher.training
    average, raw = (network.vocab_embed.embedding for network in (bundle.teacher, job.method.trained["network"]))
    assert torch.equal(average, job.average.module.vocab_embed.embedding)
    assert not torch.equal(average, raw)


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_the_bundle_has_the_process_of_the_run(source, process):
    bundle = make_trainer(replace(CONFIG, process=process, schedule="cosine"), Inputs(source, CPU)).bundle()
    assert bundle.process == (Absorbing(32, Cosine()) if process == "absorbing" else Uniform(32, Cosine()))


def test_a_constant_weight_minimises_the_mean_cross_entropy_and_still_logs_the_nelbo(source):
    weighted, flat = (
        make_trainer(replace(CONFIG, weight=weight), Inputs(source, CPU)) for weight in ("nelbo", "constant")
    )
    batch = flat.method.prepare(0, 0)
    (loss, metrics), (nelbo_loss, nelbo_metrics) = (job.method._nelbo(batch) for job in (flat, weighted))
    torch.testing.assert_close(metrics["nelbo"], nelbo_metrics["nelbo"])
    torch.testing.assert_close(nelbo_loss, nelbo_metrics["nelbo"])
    # A new network is uniform, so the loss is log V over the half of the positions that low-discrepancy times mask.
    assert loss.item() == pytest.approx(0.5 * math.log(source.vocab_size - 1), rel=0.4)


AUTOREGRESSIVE = replace(CONFIG, model="autoregressive", optimizer=replace(CONFIG.optimizer, method="muon"))


@pytest.mark.slow
def test_the_autoregressive_baseline_learns_resumes_and_makes_a_bundle(source, assert_resumes_exactly):
    assert_resumes_exactly(lambda folder: make_trainer(AUTOREGRESSIVE, Inputs(source, CPU)), CONFIG.loop, stop_in=2)
    job = make_trainer(replace(AUTOREGRESSIVE, loop=replace(CONFIG.loop, steps=30)), Inputs(source, CPU))
    before = job.validate()["validation_nll"]
    assert before == pytest.approx(math.log(source.vocab_size - 1), rel=0.01)
    for step in range(30):
        job.step(step)
    assert job.validate()["validation_nll"] < before - 0.03
    bundle = job.bundle()
    assert bundle.teacher is None
    assert bundle.network() is bundle.autoregressive


@pytest.mark.slow  # compiles, in another process, where calls are not type-checked
def test_compiled_blocks_train_like_uncompiled_ones(tmp_path):
    values = {}
    for flag in ("--loop.no-compile", "--loop.compile"):
        out = tmp_path / flag
        command = [sys.executable, "-m", "didi", "pretrain", "markov", "--out", str(out), "--max-steps", "3", flag]
        subprocess.run([*command, "--device", "cpu", "--loop.log-every", "1"], check=True, capture_output=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        values[flag] = [line.get("nelbo", line.get("validation_nelbo")) for line in lines]
    plain, compiled = values.values()
    assert len(plain) == 4
    assert compiled == pytest.approx(plain, rel=1e-4)
