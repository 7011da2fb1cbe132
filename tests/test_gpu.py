"""What only an accelerator can show: run with ``pytest -m gpu`` where there is one."""

from dataclasses import replace

import pytest
import torch

import didi
from didi.data.source import RandomSource
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.methods.base import Inputs
from didi.models.bundle import Bundle
from didi.models.dit import DiT
from didi.models.inference import for_inference
from didi.recipes import DISTILL, teacher_shape
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import time_grid
from didi.training.dry_run import CPU, estimate
from didi.training.trainer import make_trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


@pytest.fixture
def bundle():
    return didi.load("tiny-news")


@pytest.mark.parametrize("sampler", ["ancestral", "guided"])
def test_samples_are_those_of_the_cpu(bundle, sampler):
    of_cpu = didi.generate(bundle, num_samples=16, nfe=8, sampler=sampler)
    of_device = didi.generate(bundle.to(CUDA), num_samples=16, nfe=8, sampler=sampler)
    assert (of_cpu.tokens == of_device.tokens.cpu()).double().mean() > 0.9  # a rounding turns a draw, and what follows


def test_the_sampling_loop_never_waits_for_the_device(bundle):
    network = bundle.to(CUDA).denoiser()
    canvas = Canvas.blank(4, network.length, CUDA)
    steps = Ancestral(network, bundle.process)(canvas, time_grid(8), SequenceNoise(0, range(4)))
    next(steps)  # the start is on the device, and the plan is made from it
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps:
            last = step
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not (last.z == network.mask_id).any()


@pytest.mark.parametrize("numerics", ["float32", "bfloat16"])
def test_a_compiled_trunk_draws_the_same_samples(bundle, numerics):
    bundle = bundle.to(CUDA)
    plain, compiled = (
        didi.generate(
            for_inference(bundle, numerics, is_compiled=is_compiled),
            num_samples=8,
            nfe=4,
            batch_size=8,
            is_whole_batch=True,
        )
        for is_compiled in (False, True)
    )
    assert (plain.tokens == compiled.tokens).double().mean() > 0.9


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
    torch.cuda.reset_peak_memory_stats()
    with CUDA:
        teacher = Bundle(teacher=DiT(shape).eval())
    job = make_trainer(config, Inputs(source, CUDA, tmp_path, teacher))
    for step in range(job.num_steps):
        metrics = job.step(step)
        assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())
    measured = torch.cuda.max_memory_allocated()
    meant = replace(config, loop=replace(config.loop, precision="bf16"))
    found = estimate(meant, lambda folder: Inputs(source, CPU, folder, Bundle(teacher=DiT(shape).eval())))
    assert found.peak(config.loop.batch_size) == pytest.approx(measured, rel=0.15)
