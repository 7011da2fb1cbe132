"""One stage of the GPU job, in a separate process; results and bundles are written to files in ``--work``.

    python benchmarks/gpu/stages.py NAME [--carried build/gpu] [--work build/gpu/work] [--seconds S] [--toy]

``tune`` compares learning rates on the validation split. ``teacher``, ``autoregressive`` and ``student`` train the
recipes ``prose`` within ``--seconds``; called again, they resume an interrupted run. ``--toy`` makes all sizes small,
to try the stages on a CPU.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from carried import CARRIED, source

from didi.apps.train import distill_run, pretrain_run
from didi.data.source import TextSource
from didi.evaluation.machine import machine_name
from didi.files import write_atomically
from didi.methods.base import Inputs
from didi.methods.elbo import PretrainConfig
from didi.models.bundle import load, save
from didi.models.untrusted import read_yaml
from didi.process_group import default_device
from didi.recipes import DISTILL, PRETRAIN
from didi.training.fit import fitted_to_minutes
from didi.training.run_folder import RunFolder

TOY = {"hidden_size": 32, "num_blocks": 2, "num_heads": 2}
RESERVE_SECONDS = 45.0  # reserved for fitting the schedule, compiling, validating and saving
RATES = (1.5e-3, 3e-3, 6e-3)


@dataclass(frozen=True)
class Job:
    """Arguments of a stage.

    Attributes:
        carried: folder that ``prepare`` wrote.
        work: folder of runs and results.
        seconds: wall-clock time limit of the stage.
        is_toy: whether sizes are small.
        begin: start of the stage, by ``time.monotonic``.
    """

    carried: Path
    work: Path
    seconds: float
    is_toy: bool
    begin: float

    @property
    def device(self) -> torch.device:
        """The accelerator if there is one."""
        return default_device()

    def minutes_left(self, reserve: float) -> float:
        """Remaining minutes of the stage, minus ``reserve`` seconds; at least 1 second."""
        return max(1.0, self.seconds - (time.monotonic() - self.begin) - reserve) / 60


def pretraining(job: Job, name: str, data: TextSource) -> PretrainConfig:
    """A recipe of ``prose``, fitted to the toy corpus with ``is_toy``."""
    config = PRETRAIN[name]
    if not job.is_toy:
        return config
    return replace(
        config,
        data=replace(config.data, length=data.validation.shape[1], vocab_size=data.vocab_size),
        network=replace(config.network, **TOY),
        loop=replace(config.loop, batch_size=8, validation_sequences=16, compile=False),
    )


def planned(job: Job, config: Any, folder: RunFolder, inputs: Inputs) -> Any:
    """``config`` with a number of steps that fits the remaining time; a run of an earlier call keeps its number."""
    if folder.has_run:
        return config.limited(int(read_yaml(folder.path / "config.yaml")["loop"]["steps"]))
    return fitted_to_minutes(config, inputs, job.minutes_left(RESERVE_SECONDS))


def train_teacher(job: Job, name: str = "prose") -> dict[str, Any]:
    """Pre-train within the time limit and save the bundle in bfloat16."""
    data = source(job.carried)
    config = pretraining(job, name, data)
    folder = RunFolder(job.work / name)
    config = planned(job, config, folder, Inputs(data, job.device))
    bundle = pretrain_run(config, folder, resume=folder.has_run, device=job.device, source=data)
    save(load(bundle), job.work / f"{name}-bundle", dtype=torch.bfloat16)
    return {"recipe": name, "steps": config.loop.steps, "metrics": _metrics(folder)}


def train_student(job: Job) -> dict[str, Any]:
    """Distil the teacher of ``train_teacher`` within the time limit and save student and discriminator in bfloat16."""
    data, config = source(job.carried), DISTILL["prose"]
    teacher = job.work / "prose" / "bundle"
    if not teacher.is_dir():  # the teacher was trained by an earlier job
        teacher = job.carried / "prose-bundle"
    config = replace(config, teacher=str(teacher), loop=replace(config.loop, checkpoint_every=10**6))
    if job.is_toy:
        config = replace(
            config,
            data=replace(config.data, length=data.validation.shape[1]),
            discriminator=replace(config.discriminator, warmup_steps=2, guidance_steps=2),
            loop=replace(config.loop, batch_size=4, steps=4, validation_sequences=16),
        )
    inputs = Inputs(data, job.device, teacher=load(teacher))
    folder = RunFolder(job.work / "prose-student")
    config = planned(job, config, folder, inputs)
    bundle = load(distill_run(config, folder, resume=folder.has_run, device=job.device, source=data))
    save(replace(bundle, teacher=None), job.work / "prose-student-bundle", dtype=torch.bfloat16)
    return {"recipe": "prose", "steps": config.loop.steps, "metrics": _metrics(folder)}


def tune(job: Job) -> dict[str, Any]:
    """Validation NELBO after runs of equal time, by learning rate and batch size."""
    data, results = source(job.carried), {}
    base = pretraining(job, "prose", data)
    sizes = (base.loop.batch_size // 2, base.loop.batch_size)
    candidates = [(rate, base.loop.batch_size) for rate in RATES] + [(RATES[1], sizes[0])]
    each = job.seconds / len(candidates)
    for number, (rate, size) in enumerate(candidates):
        config = replace(
            base,
            optimizer=replace(base.optimizer, learning_rate=rate, warmup_steps=50),
            loop=replace(base.loop, batch_size=size, validate_every=10**6, checkpoint_every=10**6),
        )
        remaining = each * (number + 1) - (time.monotonic() - job.begin)
        # The rest of the time is needed to fit the schedule.
        config = fitted_to_minutes(config, Inputs(data, job.device), max(1.0, 0.75 * remaining - 2) / 60)
        folder = RunFolder(job.work / f"tune-{number}")
        pretrain_run(config, folder, resume=False, device=job.device, source=data)
        lines = _metrics(folder)
        results[f"rate {rate:g}, batch {size}"] = {"steps": config.loop.steps, "last": lines[-3:]}
        write_atomically(job.work / "tune.partial.json", json.dumps(results))
    return results


def _metrics(folder: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in folder.metrics.read_text("utf-8").splitlines()]


def speed(job: Job) -> dict[str, Any]:
    """Sampling and distillation at paper scale; see ``gpu_speed``."""
    import gpu_speed

    return gpu_speed.measure(job.seconds, job.work / "speed.partial.json", is_toy=job.is_toy)


STAGES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "tune": tune,
    "teacher": train_teacher,
    "autoregressive": lambda job: train_teacher(job, "prose-ar"),
    "student": train_student,
    "speed": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("--carried", type=Path, default=CARRIED)
    parser.add_argument("--work", type=Path, default=CARRIED / "work")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    job = Job(args.carried, args.work, args.seconds, args.toy, time.monotonic())
    args.work.mkdir(parents=True, exist_ok=True)
    results = STAGES[args.name](job)
    seconds = time.monotonic() - job.begin
    record = {"stage": args.name, "machine": machine_name(job.device), "seconds": round(seconds, 1), "found": results}
    write_atomically(args.work / f"{args.name}.json", json.dumps(record))


if __name__ == "__main__":
    main()
