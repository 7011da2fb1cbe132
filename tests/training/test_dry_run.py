"""Dry runs compared with real steps: bytes of live tensors at another batch size, and operations counted by torch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from didi.data.source import RandomSource
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.models.bundle import Bundle
from didi.models.discriminator import num_parameters
from didi.models.dit import DiT
from didi.recipes import PRETRAIN
from didi.training.dry_run import CPU, dry_run, estimate
from didi.training.live_memory import LiveMemory
from didi.training.trainer import make_trainer

from ..two_moves import MARKOV

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]
LENGTH, VOCAB_SIZE = 64, 2000
SMALL, LARGE, MEASURED = 4, 8, 12


@pytest.fixture
def inputs_of(tiny_config):
    shape = tiny_config(vocab_size=VOCAB_SIZE, length=LENGTH, hidden_size=64, num_blocks=3, num_heads=2)

    def with_teacher(folder):
        return Inputs(RandomSource(LENGTH, VOCAB_SIZE), CPU, folder, Bundle(teacher=DiT(shape).eval()))

    return with_teacher


def distillation(**changes):
    config = MARKOV
    loop = replace(config.loop, **{"steps": 2} | changes.pop("loop", {}))
    discriminator = replace(config.discriminator, warmup_steps=1, **changes.pop("discriminator", {}))
    objective = replace(config.objective, **changes.pop("objective", {}))
    data = replace(config.data, length=LENGTH)
    return replace(config, data=data, loop=loop, discriminator=discriminator, objective=objective, **changes)


def pretraining(recipe="markov", **changes):
    config = PRETRAIN[recipe]
    loop = replace(config.loop, **{"steps": 3} | changes.pop("loop", {}))
    network = replace(config.network, hidden_size=64, num_blocks=3, num_heads=2, cond_dim=8, dropout=0.1)
    network = replace(network, dropout=0.0) if changes.get("model") == "autoregressive" else network
    return replace(config, data=replace(config.data, length=LENGTH), loop=loop, network=network, **changes)


CONFIGS = {
    "two moves": distillation(),
    "few blocks": distillation(discriminator={"trainable_blocks": 1, "completions": 1}),
    "adapters": distillation(lora_rank=4, discriminator={"trainable_blocks": 2}),
    "accumulated": distillation(loop={"accumulation": 3}),
    "recomputed activations": distillation(loop={"activation_checkpointing": True}),
    "paper": distillation(objective={"completions": 1, "advantage": "batch", "revealed_only": False}),
    "teacher pool": distillation(discriminator={"real_source": "teacher-pool", "pool_size": 64, "pool_nfe": 4}),
    "no divergence": distillation(objective={"divergence_weight": 0.0}),
    "jeffreys": distillation(objective={"divergence": "jeffreys"}),
    "paths": distillation(objective={"trajectory": "path", "moves": 8}),
    "whole paths": distillation(
        objective={
            "trajectory": "whole-path",
            "moves": 4,
            "completions": 1,
            "advantage": "batch",
            "revealed_only": False,
            "divergence_weight": 0.0,
        },
        discriminator={"steps_per_student_step": 2, "fresh_rollouts": True},
    ),
    "guidance steps": distillation(discriminator={"guidance_steps": 1}),
    "bf16": distillation(loop={"precision": "bf16"}),
    "pre-training": pretraining(),
    "pre-training, accumulated": pretraining(loop={"accumulation": 3}),
    "uniform": pretraining("markov-udlm"),
    "curriculum": pretraining("markov-duo"),
    "autoregressive": pretraining(model="autoregressive"),
    "muon": pretraining("tiny-news"),
}


def real_run(config, inputs_of, batch_size, folder):
    """Bytes at the peak of real steps, and the operations of the last."""
    config = replace(config, loop=replace(config.loop, batch_size=batch_size))
    with LiveMemory() as memory:
        trainer = make_trainer(config, inputs_of(Path(folder)))
        trainer.step(1)  # creates the optimizers' state
        memory.reset_peak()
        for step in range(trainer.num_steps):
            trainer.step(step)
    # The counter does not support fused attention on CPUs.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        trainer.step(1)
    return memory.peak, counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_two_dry_runs_predict_memory_and_operations_of_a_larger_batch(inputs_of, tmp_path, name):
    config = CONFIGS[name]
    if name == "autoregressive":
        pytest.importorskip("transformers")
    estimated = estimate(config, inputs_of, batch_sizes=(SMALL, LARGE))
    peak, flops = real_run(config, inputs_of, MEASURED, tmp_path)
    assert estimated.peak(MEASURED) == pytest.approx(peak, rel=0.15)
    per_row = (estimated.large.flops - estimated.small.flops) / (LARGE - SMALL)
    assert estimated.large.flops + (MEASURED - LARGE) * per_row == pytest.approx(flops, rel=0.15)


@pytest.mark.parametrize("name", ["two moves", "adapters", "recomputed activations", "pre-training", "uniform"])
def test_a_dry_run_measures_the_memory_of_real_steps(inputs_of, tmp_path, name):
    record = dry_run(CONFIGS[name], inputs_of, SMALL)
    peak, _ = real_run(CONFIGS[name], inputs_of, SMALL, tmp_path)
    assert record.peak == pytest.approx(peak, rel=0.03)  # drawn tokens differ, masks do not


def test_a_dry_run_computes_no_values(inputs_of):
    """A network of 380 GiB needs no memory for its values."""
    config = pretraining(loop={"steps": 1})
    config = replace(config, network=replace(config.network, hidden_size=65_536, num_heads=64, num_blocks=2))
    record = dry_run(config, inputs_of, 2)
    assert record.weights > 350 * 2**30
    assert record.moments == pytest.approx(2 * record.gradients, rel=0.01)
    assert record.peak > record.weights + record.average + record.moments + record.gradients


def test_sizes_are_those_of_the_networks(inputs_of, tmp_path):
    full, shared = (dry_run(distillation(lora_rank=rank), inputs_of, SMALL) for rank in (None, 4))
    of_teacher = num_parameters(inputs_of(tmp_path).teacher.teacher)
    assert full.parameters > 3.5 * of_teacher
    assert full.average == pytest.approx(4 * of_teacher, rel=0.01)
    assert full.moments == pytest.approx(8 * full.trained, rel=0.01)
    assert shared.trained < 0.2 * of_teacher
    # Parameters beside the teacher's: the trained ones, and the average of the student's.
    assert shared.trained < shared.parameters - of_teacher < 2 * shared.trained


@pytest.mark.parametrize("real_source", ["teacher-pool", "teacher-steps=2"])
def test_several_devices_share_teacher_samples(real_source, inputs_of):
    config = distillation(discriminator={"real_source": real_source, "pool_nfe": 2})
    assert dry_run(config, inputs_of, SMALL, num_processes=2).parameters > 0


def test_several_devices_divide_rows_and_if_sharded_everything_else(inputs_of):
    config = distillation()
    one, two = (dry_run(config, inputs_of, LARGE, num_processes=num) for num in (1, 2))
    sharded = dry_run(replace(config, loop=replace(config.loop, fsdp=True)), inputs_of, LARGE, num_processes=2)
    assert two.flops == pytest.approx(one.flops, rel=0.1)  # each device has a row of the first state
    assert (two.weights, two.moments) == (one.weights, one.moments)
    assert two.peak < one.peak
    assert sharded.moments == pytest.approx(one.moments / 2, rel=0.02)
    assert sharded.gradients == pytest.approx(one.gradients / 2, rel=0.02)
    assert sharded.weights < 0.6 * one.weights
    assert not torch.distributed.is_initialized()


def test_a_dry_run_has_a_step_of_every_phase(inputs_of):
    """Steps of short phases are run too, since they could have the largest peak."""
    base = distillation(loop={"steps": 40})
    with_guidance = replace(base, discriminator=replace(base.discriminator, guidance_steps=1))
    num = [len(dry_run(config, inputs_of, SMALL).segments) for config in (base, with_guidance)]
    assert num == [3, 4]  # warm-up, first and last student step; and the guidance step


def test_batch_sizes_that_the_settings_refuse_are_skipped(inputs_of):
    config = distillation(loop={"batch_size": 2})  # a baseline over states needs two
    estimated = estimate(config, inputs_of)
    assert (estimated.small.batch_size, estimated.large.batch_size) == (2, 4)
    with pytest.raises(UsageError, match="of 2 or more; got 1"):
        dry_run(config, inputs_of, 1)


def test_the_largest_batch_is_the_last_that_fits(inputs_of):
    estimated = estimate(pretraining(), inputs_of, batch_sizes=(SMALL, LARGE))
    assert estimated.largest_batch(estimated.peak(100) + 1) == 100
    assert estimated.largest_batch(estimated.peak(100) + 1, multiple_of=8) == 96
    assert estimated.largest_batch(1.0) == 0
