"""Tests that need a CUDA device: ``JAXTYPING_DISABLE=1 pytest -m gpu``.

Functions whose calls are type-checked cannot be compiled, hence the variable.
"""

import copy
import gc
from dataclasses import replace

import pytest
import torch

import didi
from didi.data.source import RandomSource, open_source
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.methods.base import Inputs
from didi.models.bundle import Bundle
from didi.models.dit import DiT
from didi.models.inference import for_inference
from didi.recipes import DISTILL, PRETRAIN, teacher_shape
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import time_grid
from didi.training.dry_run import CPU, estimate
from didi.training.trainer import make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # of the compiler
]
CUDA = torch.device("cuda")


@pytest.fixture
def bundle():
    return didi.load("tiny-news")


@pytest.mark.parametrize("sampler", ["ancestral", "guided"])
def test_samples_are_those_of_the_cpu(bundle, sampler):
    of_cpu = didi.generate(bundle, num_samples=16, nfe=8, sampler=sampler)
    of_device = didi.generate(bundle.to(CUDA), num_samples=16, nfe=8, sampler=sampler)
    is_equal = of_cpu.tokens == of_device.tokens.cpu()
    assert is_equal.double().mean() > 0.9  # rounding can change a draw and all that follow


def test_the_sampling_loop_never_waits_for_the_device(bundle):
    network = bundle.to(CUDA).denoiser()
    canvas = Canvas.blank(4, network.length, CUDA)
    steps = Ancestral(network, bundle.process)(canvas, time_grid(8), SequenceNoise(0, range(4)))
    next(steps)  # before the first step the start is copied to the host, where the moves are planned
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps:
            last = step
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not (last.z == network.mask_id).any()


@pytest.mark.parametrize(("numerics", "error"), [("float32", 1e-3), ("bfloat16", 3e-2)])
def test_a_compiled_trunk_computes_the_same(bundle, numerics, error):
    bundle = bundle.to(CUDA)
    plain, compiled = (
        for_inference(bundle, numerics, is_compiled=is_compiled).denoiser() for is_compiled in (False, True)
    )
    for seed, mode in enumerate((torch.inference_mode, torch.no_grad, torch.inference_mode)):
        with mode():  # the same graph, other inputs; samplers differ in the mode
            torch.manual_seed(seed)
            z = torch.randint(plain.vocab_size, (8, plain.length), device=CUDA)
            expected, computed = plain.features(z, None), compiled.features(z, None)
            assert (computed - expected).norm() < error * expected.norm()


@pytest.fixture
def pretraining():
    config = PRETRAIN["tiny-news"]
    loop = replace(config.loop, steps=8, batch_size=4)
    config = replace(config, data=replace(config.data, corpus="markov", length=32, vocab_size=None), loop=loop)
    return lambda **changes: make_trainer(
        replace(config, loop=replace(config.loop, **changes)), Inputs(open_source("markov", length=32), CUDA)
    )


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_pre_training_step_never_waits_for_the_device(pretraining, is_compiled):
    job = pretraining(compile=is_compiled)
    for step in range(3):
        job.step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            metrics = job.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())


def test_compiled_blocks_train_like_uncompiled_ones(pretraining):
    plain, compiled = (pretraining(compile=is_compiled) for is_compiled in (False, True))
    for step in range(4):
        expected, computed = (float(job.step(step)["nelbo"]) for job in (plain, compiled))
        assert computed == pytest.approx(expected, rel=0.02)  # bfloat16


def test_a_step_that_is_not_finite_changes_nothing_on_the_device(pretraining, monkeypatch):
    job = pretraining()
    job.step(0)
    before = {name: value.clone() for name, value in job.method.trained["network"].named_parameters()}
    averages = [value.clone() for value in job.average.module.parameters()]
    whole = job.method._nelbo
    monkeypatch.setattr(job.method, "_nelbo", lambda batch: (whole(batch)[0] * float("nan"), {}))
    assert torch.isnan(job.step(1)["gradient_norm"])
    for name, value in job.method.trained["network"].named_parameters():
        assert torch.equal(value, before[name])
    assert all(map(torch.equal, job.average.module.parameters(), averages))
    monkeypatch.setattr(job.method, "_nelbo", whole)
    job.step(2)
    assert int(job.average.n_averaged) == 2


def test_a_resumed_run_equals_a_straight_one(pretraining):
    straight, first, second = (pretraining() for _ in range(3))
    for step in range(4):
        straight.step(step)
    for step in range(2):
        first.step(step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        second.step(step)
    weights, resumed = (dict(job.method.trained["network"].named_parameters()) for job in (straight, second))
    # Not bit for bit: the sums of embedding gradients have no fixed order.
    torch.testing.assert_close(resumed, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora_rank", [None, 16])
@pytest.mark.parametrize("recipe", ["owt-169m", "owt-424m"])
def test_paper_scale_trains_within_the_memory_that_doctor_says(recipe, lora_rank, tmp_path):
    shape = replace(teacher_shape(recipe), dropout=0.0)
    base = DISTILL[recipe]
    config = replace(
        base,
        lora_rank=lora_rank,
        loop=replace(base.loop, steps=2, batch_size=4, activation_checkpointing=True),
        discriminator=replace(base.discriminator, warmup_steps=1, completions=1),
    )
    source = RandomSource(1024, shape.vocab_size)
    gc.collect()  # networks of earlier tests
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with CUDA:
        teacher = Bundle(teacher=DiT(shape).eval())
    job = make_trainer(config, Inputs(source, CUDA, tmp_path, teacher))
    for step in range(job.num_steps):
        metrics = job.step(step)
        assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())
    measured = torch.cuda.max_memory_allocated() - held
    config_bf16 = replace(config, loop=replace(config.loop, precision="bf16"))
    estimated = estimate(config_bf16, lambda folder: Inputs(source, CPU, folder, Bundle(teacher=DiT(shape).eval())))
    assert estimated.peak(config.loop.batch_size) == pytest.approx(measured, rel=0.15)
