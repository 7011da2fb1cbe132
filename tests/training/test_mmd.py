"""Distillation by MMD: gradients compared with naive kernels, settings, resumption, and learning tests."""

import runpy
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.evaluation.exact.product import positionwise_distribution
from didi.methods import METHODS, method_of
from didi.methods.base import Inputs
from didi.methods.mmd import Mmd
from didi.methods.mmd_settings import MmdConfig, MmdObjective
from didi.methods.settings import DataConfig, LoopConfig, OptimizerConfig
from didi.models.bundle import Bundle
from didi.objectives.mmd import mean_of_pairs, mmd_advantages
from didi.recipes import distillation_recipes
from didi.sampling.base import time_grid
from didi.sampling.uniform_ancestral import UniformAncestral
from didi.training.trainer import make_trainer

from .distill_case import CPU, equal, weights
from .observed_step import pretrained
from .test_learning import DATA, LENGTH, MASK, NUM_SYMBOLS, PRETRAIN, STATES, TinySource, divergence_from_data

SCRIPT = Path(__file__).with_name("mmd_processes.py")
CONFIG = MmdConfig(
    data=DataConfig(corpus="markov", length=8),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    loop=LoopConfig(
        steps=3, batch_size=4, log_every=1, validate_every=2, validation_sequences=16, checkpoint_every=2, ema_decay=0.5
    ),
)
PATH = MmdObjective(trajectory="whole-path", moves=3, completions=1, advantage="leave-one-out")


def with_objective(objective=CONFIG.objective, **changes):
    return replace(CONFIG, objective=replace(objective, **changes))


@pytest.fixture(scope="module")
def uniform_teacher(make_dit):
    """A random teacher of uniform-state diffusion."""
    network = make_dit(vocab_size=32, length=8, seed=1, mask_id=None, is_time_conditioned=True)
    return Bundle(teacher=network, process=Uniform(32))


def assert_trains(job):
    start = weights(job.method.student)
    for step in range(job.num_steps):
        metrics = job.step(step)
        assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())
    assert metrics["gradient_norm"] > 0
    assert not equal(start, weights(job.method.student))


def features_of(method, rows, layer):
    """Outputs of a block of the teacher for clean sequences."""
    outputs = []
    handle = method.teacher.blocks[layer - 1].register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        method.teacher(rows, method.process.noise_level(method.teacher, torch.zeros(len(rows))))
    handle.remove()
    return outputs[0]


def naive_kernel(objective, first, second, scales):
    """Kernel of two sequences from its definition, with the features of their scored positions in each layer."""
    total = []
    for one, other, scale in zip(first, second, scales, strict=True):
        if objective.features == "sequence":
            one, other = one.mean(0, keepdim=True), other.mean(0, keepdim=True)
        if objective.features == "concatenated":
            one, other = one.flatten()[None], other.flatten()[None]
        distances = (one[:, None] - other[None]).square().sum(-1)
        total += [torch.exp(-distances / (2 * (multiple * scale) ** 2)).mean() for multiple in objective.bandwidths]
    return torch.stack(total).mean()


def naive_kernels(method, batch):
    """Kernel of the pairs of samples, and of samples and corpus."""
    objective, layers = method.settings.objective, method.settings.objective.layers or (1,)
    (num_states, num_samples, length), is_scored = batch.x.shape, batch.is_scored
    if is_scored is None:
        is_scored = torch.ones(1, length, dtype=torch.bool)
    rows = torch.cat([batch.x, batch.real], 1)
    features = [features_of(method, rows.flatten(0, 1), layer).unflatten(0, rows.shape[:2]) for layer in layers]
    # Without scored positions the kernel is 0 for features of tokens (no pairs) and 1 for the others (equal features).
    of_no_positions = 0.0 if objective.features == "token" else 1.0
    kernels = torch.full((num_states, num_samples, rows.shape[1]), of_no_positions)
    for state in is_scored.any(1).nonzero().flatten():
        points = [
            [rows_of_features[state, row, is_scored[state]] for rows_of_features in features]
            for row in range(rows.shape[1])
        ]
        for row in range(num_samples):
            for column in range(rows.shape[1]):
                kernels[state, row, column] = naive_kernel(objective, points[row], points[column], method._scales)
    return kernels.split([num_samples, batch.real.shape[1]], 2)


def gradient(method, loss):
    grads = torch.autograd.grad(loss, list(method.student.parameters()), allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


VALUES = {
    "advantage": [{}, {"advantage": "leave-one-out"}],
    "group_size": [{"completions": 6}, {"completions": 6, "group_size": 3}],
    "completions": [{"completions": 4}, {"completions": 6}],
    "normalise_advantage": [{}, {"normalise_advantage": False}],
    "features": [{}, {"features": "sequence"}, {"features": "concatenated"}],
    "layers": [{"layers": (1,)}, {"layers": (2,)}, {"layers": (1, 2)}],
    "bandwidths": [{}, {"bandwidths": (0.5,)}, {"bandwidths": (0.5, 2.0)}],
    "trajectory": [{"objective": PATH}],
    "moves": [{"objective": PATH, "moves": 2}],
    "corpus_rows": [{"objective": PATH, "corpus_rows": 3}],
}
COVERED_BELOW = {"feature_times", "bank_size"}


def test_every_setting_is_covered():
    assert {*VALUES, *COVERED_BELOW} == {field.name for field in fields(MmdObjective)}


@pytest.mark.parametrize("name", VALUES)
def test_the_gradient_equals_that_of_naive_kernels_and_depends_on_every_setting(make_job, name):
    gradients = []
    for changes in VALUES[name]:
        plain = {} if "objective" in changes else {"completions": 4}
        method = make_job(with_objective(**plain | changes)).method
        objective, batch = method.settings.objective, method.prepare(0, 0)
        sample_kernel, cross_kernel = naive_kernels(method, batch)
        advantage = mmd_advantages(
            sample_kernel, cross_kernel, advantage=objective.advantage, group_size=objective.group_size
        )
        if objective.normalise_advantage:
            advantage = advantage / advantage.square().mean().sqrt()
        expected = gradient(method, (advantage * batch.score).mean())
        batch = method.prepare(0, 0)
        loss, metrics = method._loss(batch)
        discrepancy = mean_of_pairs(sample_kernel).mean() - 2 * cross_kernel.mean()
        assert float(metrics["mmd"]) == pytest.approx(float(discrepancy), rel=1e-3, abs=1e-4)
        gradients.append(gradient(method, loss))
        torch.testing.assert_close(gradients[-1], expected, rtol=2e-3, atol=2e-4 * float(expected.abs().max()))
    for first, second in pairwise(gradients):
        assert (first - second).norm() > 0.01 * first.norm()


def test_samples_complete_the_corrupted_sequences_of_the_corpus(make_job):
    method = make_job(with_objective(completions=500)).method
    batch = method.prepare(0, 0)
    x0, is_scored = batch.real[:, 0], batch.is_scored
    assert torch.equal(x0, method.clean_rows(0, 0))
    assert 0 < is_scored.float().mean() < 1
    kept = ~is_scored[:, None].expand_as(batch.x)
    assert torch.equal(batch.x[kept], x0[:, None].expand_as(batch.x)[kept])
    z = x0.masked_fill(is_scored, 32)
    log_probs = method.process.log_probs(method.student(z)[..., :33]).detach()
    expected = log_probs[:, None].expand(-1, 500, -1, -1).gather(3, batch.x[..., None])[..., 0]
    torch.testing.assert_close(batch.score.detach(), torch.where(kept, 0, expected).sum(2), rtol=1e-4, atol=1e-4)
    counts = torch.nn.functional.one_hot(batch.x, 33).float().mean(1)[is_scored]
    assert (counts - log_probs.exp()[is_scored]).abs().max() < 0.15


def test_samples_of_a_path_have_the_configured_number_of_moves(make_job):
    one, three = (make_job(with_objective(PATH, moves=moves)).method.prepare(0, 0) for moves in (1, 3))
    assert one.x.shape == three.x.shape == (1, 4, 8)
    assert not torch.equal(one.x, three.x)
    assert (one.score < 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("objective", [CONFIG.objective, PATH])
def test_features_may_be_of_corrupted_sequences(make_job, objective):
    kernels = []
    for times in ((0.0,), (0.5,), (0.0, 0.5)):
        method = make_job(with_objective(objective, feature_times=times, completions=objective.completions)).method
        assert len(method._scales) == len(times)
        kernels.append(method._kernels(method.prepare(0, 0))[1])
    assert (kernels[0] - kernels[1]).abs().max() > 1e-3
    method = make_job(with_objective(objective, feature_times=(0.5,))).method
    seen = []
    method.teacher.vocab_embed.register_forward_hook(lambda _, args, output: seen.append(args[0]))
    method._loss(method.prepare(0, 0))
    masked = torch.cat([states.flatten() for states in seen[-2:]]) == 32
    assert 0.3 < masked.float().mean() < 0.7


def test_equal_samples_have_a_small_finite_loss(make_job):
    method = make_job(with_objective(PATH)).method
    batch = method.prepare(0, 0)
    assert method.settings.objective.normalise_advantage
    assert method._loss(batch)[0].abs() > 1e-4
    assert method._loss(replace(batch, x=batch.x[:, :1].expand_as(batch.x)))[0].abs() < 1e-2


def test_features_of_many_sequences_are_computed_in_parts(make_job, monkeypatch):
    method, parts = make_job(CONFIG).method, []
    rows, features = method.source.batch(0, 5), method._local_features
    monkeypatch.setattr("didi.methods.mmd._TOKENS_AT_ONCE", 16)
    monkeypatch.setattr(method, "_local_features", lambda *part: parts.append(len(part[0])) or features(*part))
    assert [len(kind) for kind in method._features(rows, torch.Generator())] == [5]
    assert parts == [2, 2, 1]


def test_with_a_bank_samples_are_compared_with_its_sequences(make_job):
    method = make_job(with_objective(PATH, bank_size=8)).method
    assert [len(features) for features in method._bank] == [8]
    rows = method.source.batch(0, 8)
    batch = method.prepare(1, 0)
    kernel = method._kernels(batch)[1][0]
    method._bank = []
    kernel_with_all = method._kernels(replace(batch, real=rows[None]))[1][0]
    for column in kernel.T:  # each is the kernel with a row of the bank
        assert (kernel_with_all - column[:, None]).abs().amax(0).min() < 1e-5
    assert kernel.shape == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        with_objective(PATH),
        with_objective(PATH, bank_size=6, feature_times=(0.0, 0.5)),
        replace(with_objective(PATH), loop=replace(CONFIG.loop, accumulation=2)),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_job, assert_resumes_exactly, config):
    assert_resumes_exactly(lambda folder: make_job(config, folder), config.loop, 1)


def test_the_bandwidths_are_restored_from_a_checkpoint(make_job):
    job, other = (make_job(with_objective(PATH)) for _ in range(2))
    state = job.state_dict()
    state["method"]["scales"] = state["method"]["scales"] * 2
    other.load_state_dict(state)
    assert torch.equal(other.method._scales, 2 * job.method._scales)


@pytest.mark.slow
def test_accumulated_micro_batches_have_consecutive_corpus_rows_of_the_batch(make_job):
    plain = with_objective(normalise_advantage=False, completions=4)
    job = make_job(replace(plain, loop=replace(plain.loop, batch_size=2, accumulation=2)))
    x0 = [job.method.prepare(0, number).real[:, 0] for number in (0, 1)]
    assert torch.equal(torch.cat(x0), job.method.source.batch(0, 4))
    assert_trains(job)
    paths = replace(with_objective(PATH, corpus_rows=2), loop=replace(plain.loop, accumulation=2))
    method = make_job(paths).method
    real = torch.cat([method.prepare(0, number).real[0] for number in (0, 1)])
    assert torch.equal(real, method.source.batch(0, 16))


@pytest.mark.parametrize("objective", [CONFIG.objective, PATH])
def test_a_uniform_state_teacher_can_be_distilled(make_job, uniform_teacher, objective):
    job = make_job(with_objective(objective), bundle=uniform_teacher)
    assert_trains(job)
    batch = job.method.prepare(0, 0)
    assert (batch.x < 32).all()
    if objective is not PATH:
        assert batch.is_scored.all()


def test_the_bundle_records_the_number_of_moves_of_a_path(make_job):
    assert make_job(with_objective(PATH)).method.bundle().intended_nfe == 3
    assert make_job(CONFIG).method.bundle().intended_nfe is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moves": 3}, "moves is 1 or more for objective.trajectory whole-path, and unset .* got 3 for corrupted"),
        ({"trajectory": "whole-path"}, "got None for whole-path"),
        ({"objective": PATH, "completions": 2}, "completions is 1 for .* got 2"),
        ({"bank_size": 3}, "bank_size and corpus_rows are for .* got 3 and 1"),
        ({"layers": (0,)}, "layers are different block numbers, from 1; got .0"),
        ({"layers": (1, 1)}, "layers are different"),
        ({"feature_times": (1.0,)}, "feature_times are one or more in .0, 1.; got"),
        ({"bandwidths": ()}, "bandwidths are one or more positive numbers"),
        ({"bandwidths": (-1.0,)}, "bandwidths are one or more positive numbers"),
        ({"completions": 3}, "objective.completions is a multiple of objective.group_size.*got 3 and 2"),
        ({"completions": 2, "advantage": "leave-one-out"}, "completions is 3 or more"),
        ({"objective": PATH, "advantage": "groups", "group_size": 3}, "loop.batch_size is a multiple of .*got 4 and"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        with_objective(**changes)


def test_layers_beyond_those_of_the_teacher_are_refused(make_job):
    with pytest.raises(UsageError, match=r"numbers of teacher blocks, 1 to 2; got \[3\]"):
        make_job(with_objective(layers=(3,)))


def test_the_method_has_a_name_and_recipes():
    assert METHODS["mmd"] is Mmd is method_of(CONFIG)
    recipes = distillation_recipes("mmd")
    assert {recipes[name].objective.moves for name in ("exact", "exact-udlm")} == {4}
    assert {recipes[name].objective.moves for name in ("markov", "tiny-news")} == {8}
    published = recipes["owt-169m"]
    assert published.objective == MmdObjective(layers=(4,))
    assert published.loop.batch_size * published.loop.accumulation == 512


@pytest.mark.slow
def test_two_processes_have_the_results_of_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(SCRIPT), str(tmp_path)], check=True, capture_output=True, timeout=300)
    alone = runpy.run_path(str(SCRIPT))["results"](tmp_path)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


LEARNING = replace(
    CONFIG,
    data=DATA,
    objective=replace(PATH, moves=4, features="concatenated"),
    optimizer=OptimizerConfig(learning_rate=5e-4, beta2=0.99, weight_decay=0.0),
    loop=LoopConfig(steps=100, batch_size=128, ema_decay=0.9),
)


def trained(config, teacher):
    job = make_trainer(config, Inputs(TinySource(), CPU, teacher=teacher))
    for step in range(job.num_steps):
        job.step(step)
    return job.bundle().student


@pytest.mark.slow
@pytest.mark.parametrize("features", ["token", "sequence", "concatenated"])
def test_a_short_run_lowers_the_divergence_of_the_sampler(features):
    source = TinySource()
    teacher = pretrained(PRETRAIN, source)
    config = replace(LEARNING, objective=replace(LEARNING.objective, features=features))
    before, after = (divergence_from_data(net, source.chain, 4) for net in (teacher.teacher, trained(config, teacher)))
    assert after < 0.92 * before  # 0.278 to 0.239 (sequence) and 0.232 (concatenated)


@pytest.mark.slow
def test_a_short_run_lowers_the_divergence_of_a_uniform_state_sampler():
    source = TinySource()
    network = replace(PRETRAIN.network, is_time_conditioned=True)
    teacher = pretrained(replace(PRETRAIN, process="uniform", weight="nelbo", network=network), source)
    log_q = source.chain.log_likelihood(STATES[(STATES != MASK).all(1)])

    def divergence(net):
        probs = positionwise_distribution(UniformAncestral(net, teacher.process), NUM_SYMBOLS, LENGTH, time_grid(4))
        return float((probs * (probs.log() - log_q)).sum())

    before, after = divergence(teacher.teacher), divergence(trained(LEARNING, teacher))
    assert after < 0.92 * before  # 0.517 to 0.426
