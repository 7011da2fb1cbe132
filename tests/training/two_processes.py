"""Results of training, sampling and evaluation that ``test_distributed`` compares between numbers of processes.

torchrun runs this file in each of two processes; for a single process the test calls ``results``.
"""

import copy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import didi
from didi.data.source import open_source
from didi.methods.base import Inputs
from didi.methods.sdtt import SdttConfig
from didi.process_group import init_process_group, process_group
from didi.recipes import DISTILL, PRETRAIN
from didi.recipes.presets import preset
from didi.training.checkpoint import load_latest, save_checkpoint
from didi.training.distributed import is_sharded
from didi.training.trainer import make_trainer

CPU = torch.device("cpu")
NUM_STEPS = 2


def distillations():
    """Settings in which rows of a batch interact: groups, repeats, accumulation, paths, guidance steps."""
    base = preset(DISTILL["markov"], "two-moves")
    loop = replace(base.loop, steps=NUM_STEPS, batch_size=8, validation_sequences=64)
    short = replace(base.discriminator, warmup_steps=1, guidance_steps=1)
    two_moves = replace(base, loop=loop, discriminator=short)
    paper = replace(base.objective, advantage="batch", completions=1, revealed_only=False, time_a=2.0, time_b=5.0)
    whole = replace(
        base.objective,
        trajectory="whole-path",
        moves=4,
        completions=1,
        advantage="leave-one-out",
        revealed_only=False,
        divergence_weight=0.0,
        reward_time="both",
    )
    return {
        "two moves": two_moves,
        "accumulated": replace(two_moves, loop=replace(loop, batch_size=4, accumulation=2)),
        "paper": replace(two_moves, objective=paper, discriminator=replace(short, steps_per_student_step=2)),
        "paths": replace(two_moves, objective=replace(base.objective, trajectory="path", moves=4)),
        "whole paths": replace(
            two_moves,
            objective=whole,
            discriminator=replace(short, steps_per_student_step=2, fresh_rollouts=True),
        ),
        "branches": replace(two_moves, objective=replace(whole, completions=2, advantage="shared-state")),
        "reference": replace(two_moves, objective=replace(whole, reference_steps=2)),
        "budgets": replace(two_moves, objective=replace(whole, budgets=(2, 4))),
        "latent codes": replace(two_moves, objective=replace(whole, latent_codes=4)),
        "pool": replace(two_moves, discriminator=replace(short, real_source="teacher-pool", pool_size=6, pool_nfe=2)),
        "sharded": replace(two_moves, loop=replace(loop, batch_size=4, accumulation=2, fsdp=True)),
        "adapters": replace(two_moves, lora_rank=4),
        "sharded last block": replace(
            two_moves, loop=replace(loop, fsdp=True), discriminator=replace(short, trainable_blocks=1)
        ),
        "recomputed activations": replace(two_moves, loop=replace(loop, activation_checkpointing=True)),
        "online": replace(two_moves, discriminator=replace(short, real_source="teacher-steps=2")),
        "sdtt": SdttConfig(data=base.data, rounds=3, first_step=8, loop=replace(loop, steps=3, accumulation=2)),
    }


RESUMED = {"two moves", "sdtt", "whole paths", "budgets", "latent codes", "adapters", "sharded", "sharded last block"}


def flat_numbers(state):
    """All numbers of a nested state in one tensor, in the order of the state."""
    if isinstance(state, dict | list | tuple):
        values = state.values() if isinstance(state, dict) else state
        return torch.cat([torch.empty(0), *(flat_numbers(value) for value in values)])
    if isinstance(state, float | torch.Tensor):
        return torch.as_tensor(state).detach().flatten().float()
    return torch.empty(0)


def resumed_checkpoint(make_job, folder):
    """The checkpoint after two steps; checks that a job that loads it continues bit for bit."""
    first_job, second_job = make_job(), make_job()
    for step in range(2):  # one of the warm-up, one with an update of the student
        first_job.step(step)
    state = first_job.state_dict()
    if process_group().is_main:
        save_checkpoint(folder, 2, state, keep=1)
    process_group().barrier()
    _, saved = load_latest(folder)
    second_job.load_state_dict(copy.deepcopy(saved))
    for job in (first_job, second_job):
        job.step(2)
    for first, second in zip(local_tensors(first_job), local_tensors(second_job), strict=True):
        assert torch.equal(first, second)
    return flat_numbers(saved)


def local_tensors(job):
    """Parts of all weights, buffers and moments that this process holds."""
    networks = [*job.method.trained.values(), job.average]
    tensors = [value for network in networks for value in network.state_dict().values()]
    for optimizer in job.optimizers.values():
        tensors += [value for moments in optimizer.state.values() for value in moments.values()]
    return [value.to_local() if is_sharded(value) else value for value in tensors]


def results(folder):
    """Named tensors that must not depend on the number of processes."""
    torch.set_num_threads(1)
    source, teacher = open_source("markov", length=32), didi.load("markov")
    tensors = {}
    for name, config in distillations().items():
        config, inputs = replace(config, teacher="markov"), Inputs(source, CPU, folder / name, teacher)
        if name in RESUMED:
            tensors[f"{name}, checkpoint"] = resumed_checkpoint(partial(make_trainer, config, inputs), folder / name)
        job = make_trainer(config, inputs)
        # Before the first step, while weights are equal: later, differences by rounding would add up in this mean.
        tensors[f"{name}, validation"] = torch.tensor(list(job.validate().values()))
        metrics = [dict(job.step(step)) for step in range(job.num_steps)]
        for row in metrics:  # the shared row of the first state passes once in each process
            row.pop("sequence_passes")
        for network in job.method.trained:
            parameters = [p.detach().flatten() for p in getattr(job.bundle(), network).parameters()]
            tensors[f"{name}, {network}"] = torch.cat(parameters)
        sums = torch.stack([torch.as_tensor(list(row.values()), dtype=torch.float64).sum() for row in metrics])
        tensors[f"{name}, metrics"] = process_group().mean(sums)
    curriculum = replace(PRETRAIN["markov-duo"].curriculum, end=1)  # the second step is one of the NELBO
    pretrainings = {
        "masked-diffusion": PRETRAIN["markov"],
        "autoregressive": replace(PRETRAIN["markov"], model="autoregressive"),
        "curriculum": replace(PRETRAIN["markov-duo"], curriculum=curriculum),
    }
    for name, base in pretrainings.items():
        config = replace(base, loop=replace(base.loop, steps=NUM_STEPS, batch_size=8, accumulation=2))
        pretraining = make_trainer(config, Inputs(source, CPU))
        for step in range(NUM_STEPS):
            pretraining.step(step)
        tensors[name] = torch.cat([p.detach().flatten() for p in pretraining.method.trained["network"].parameters()])
    drawn = didi.generate(teacher, num_samples=5, nfe=4, seed=3)
    rows = didi.evaluate(teacher, nfe=[4], num_samples=5, judge="markov", seed=3, out=folder / "evaluation")
    tensors |= {"tokens": drawn.tokens, "passes": drawn.network_passes, "perplexity": torch.tensor(rows[0].gen_ppl)}
    tensors["one sample"] = didi.generate(teacher, num_samples=1, nfe=4, seed=3).tokens
    return tensors


if __name__ == "__main__":
    with init_process_group() as group:
        path = Path(sys.argv[1])
        torch.save(results(path), path / f"rank-{group.rank}.pt")
