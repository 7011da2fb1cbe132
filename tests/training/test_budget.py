"""The budget beside what real steps need: live tensors, and operations counted by torch."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from didi.data.source import MarkovSource
from didi.methods.base import Inputs
from didi.models.bundle import Bundle
from didi.models.discriminator import num_parameters
from didi.models.dit import DiT
from didi.recipes import DISTILL, PRETRAIN
from didi.training.budget import distill_budget, pretrain_budget
from didi.training.live_memory import LiveMemory
from didi.training.trainer import make_trainer

CPU = torch.device("cpu")
LENGTH = 64


class Symbols(MarkovSource):
    """Markov text that claims a larger vocabulary, so that its laws weigh something."""

    def __init__(self, length):
        super().__init__(length, seed=0)
        self.vocab_size, self.mask_id = 2000, 1999


@pytest.fixture(scope="module")
def source():
    return Symbols(LENGTH)


@pytest.fixture
def shape(tiny_config):
    return tiny_config(vocab_size=2000, length=LENGTH, hidden_size=64, num_blocks=3, num_heads=2)


def base(**changes):
    config = DISTILL["markov"]
    loop = replace(config.loop, steps=2, batch_size=4, **changes.pop("loop", {}))
    discriminator = replace(config.discriminator, warmup_steps=1, **changes.pop("discriminator", {}))
    objective = replace(config.objective, **changes.pop("objective", {}))
    data = replace(config.data, length=LENGTH)
    return replace(config, data=data, loop=loop, discriminator=discriminator, objective=objective, **changes)


WAYS = {
    "ours": base(),
    "few blocks": base(discriminator={"trainable_blocks": 1, "completions": 1}),
    "adapters": base(lora_rank=4, discriminator={"trainable_blocks": 2}),
    "accumulated": base(loop={"accumulation": 2}),
    "activations again": base(loop={"activation_checkpointing": True}),
    "paper": base(objective={"completions": 1, "advantage": "batch", "revealed_only": False}),
    "no divergence": base(objective={"divergence_weight": 0.0}),
    "jeffreys": base(objective={"divergence": "jeffreys"}),
    "paths": base(objective={"trajectory": "path", "moves": 8}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_memory_and_arithmetic_of_a_distillation_are_what_the_budget_says(source, shape, tmp_path, name, monkeypatch):
    config = WAYS[name]
    teacher = Bundle(teacher=DiT(shape).eval())
    found = []
    with LiveMemory() as memory:
        job = make_trainer(config, Inputs(source, CPU, tmp_path, teacher))
        job.step(1)  # makes the optimizers' state
        loss_of = job.method._student_loss

        def noted(batch):
            found.append(int((batch.rollout.z_tau == shape.mask_id).sum()))
            return loss_of(batch)

        monkeypatch.setattr(job.method, "_student_loss", noted)
        memory.restart()
        job.step(1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no fused attention of CPUs
        job.step(1)
    of_teacher = 4 * num_parameters(teacher.teacher)
    budget = distill_budget(config, shape, masked=max(found))
    assert memory.peak + of_teacher == pytest.approx(budget.peak, rel=0.15)
    assert counter.get_total_flops() == pytest.approx(budget.flops, rel=0.15 if name == "paths" else 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_memory_and_arithmetic_of_a_pre_training_are_what_the_budget_says(source, shape, accumulation):
    recipe = PRETRAIN["markov"]
    loop = replace(recipe.loop, batch_size=8, accumulation=accumulation)
    network = replace(recipe.network, hidden_size=64, num_blocks=3, num_heads=2, cond_dim=8)
    config = replace(recipe, data=replace(recipe.data, length=LENGTH), loop=loop, network=network)
    with LiveMemory() as memory:
        job = make_trainer(config, Inputs(source, CPU))
        job.step(0)
        memory.restart()
        job.step(1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        job.step(1)
    budget = pretrain_budget(config, shape)
    assert memory.peak == pytest.approx(budget.peak, rel=0.15)
    assert counter.get_total_flops() == pytest.approx(budget.flops, rel=0.05)


def test_several_devices_divide_rows_and_if_sharded_everything_else(shape):
    config = base()
    one, two = (distill_budget(config, shape, num_processes=num) for num in (1, 2))
    sharded = distill_budget(replace(config, loop=replace(config.loop, fsdp=True)), shape, num_processes=2)
    assert two.flops == pytest.approx(one.flops, rel=0.1)  # each has a row of the first state
    assert (two.weights, two.moments) == (one.weights, one.moments)
    assert sharded.weights + sharded.moments == (one.weights + one.moments) / 2


def test_adapters_store_the_trunk_once(shape):
    full, shared = (distill_budget(base(lora_rank=rank), shape) for rank in (None, 4))
    of_teacher = num_parameters(DiT(shape))
    assert full.parameters > 3.5 * of_teacher
    assert shared.trained < 0.2 * of_teacher
    assert shared.trained < shared.parameters - of_teacher < 2 * shared.trained  # the student's are averaged as well
