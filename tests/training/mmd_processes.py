"""Results of MMD training that ``test_mmd`` compares between numbers of processes.

torchrun runs this file in each of two processes; for a single process the test calls ``results``.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

import didi
from didi.data.source import open_source
from didi.methods.base import Inputs
from didi.methods.mmd_settings import MmdObjective
from didi.process_group import init_process_group, process_group
from didi.recipes import distillation_recipes
from didi.training.trainer import make_trainer

OBJECTIVES = {
    "paths": MmdObjective(trajectory="whole-path", moves=3, completions=1, advantage="leave-one-out", corpus_rows=2),
    "groups": MmdObjective(trajectory="whole-path", moves=2, completions=1, feature_times=(0.0, 0.5), bank_size=16),
    "corrupted data": MmdObjective(feature_times=(0.3,)),
}


def results(folder):
    """Named tensors that must not depend on the number of processes."""
    torch.set_num_threads(1)
    base, tensors = distillation_recipes("mmd")["exact"], {}
    loop = replace(base.loop, steps=2, batch_size=8, accumulation=2, validation_sequences=64)
    for name, objective in OBJECTIVES.items():
        inputs = Inputs(open_source("exact", length=7), torch.device("cpu"), folder, didi.load("exact"))
        job = make_trainer(replace(base, objective=objective, loop=loop), inputs)
        metrics = [job.step(step) for step in range(job.num_steps)]
        for metric in ("mmd", "advantage_std", "gradient_norm"):
            values = torch.stack([torch.as_tensor(row[metric]).double() for row in metrics])
            tensors[f"{name}, {metric}"] = process_group().mean(values)
        tensors[f"{name}, student"] = torch.cat(
            [weight.detach().flatten() for weight in job.bundle().student.parameters()]
        )
    return tensors


if __name__ == "__main__":
    with init_process_group() as group:
        path = Path(sys.argv[1])
        torch.save(results(path), path / f"rank-{group.rank}.pt")
