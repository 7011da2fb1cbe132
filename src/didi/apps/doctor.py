"""``didi doctor``: what a recipe needs of a device, before it runs there."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from didi.apps.console import ResultConsole
from didi.apps.settings import resolve
from didi.errors import UsageError
from didi.evaluation.row import machine_name
from didi.methods.didi_settings import DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.models import adapters
from didi.models.bundle import load
from didi.models.dit import DiTConfig
from didi.recipes import DISTILL, PRETRAIN, VOCABULARIES, teacher_shape
from didi.training.budget import distill_budget, pretrain_budget
from didi.training.distributed import check_divides

GIB = 2**30
LORA_RANK = 16
"""Of the shared-trunk row where the recipe names none."""


class Device(NamedTuple):
    """What a data sheet says: memory in GiB as the driver tells it, and dense bfloat16 operations a second."""

    memory: float
    flops: float


DEVICES = {
    "h100": Device(79.6, 989e12),
    "h200": Device(139.8, 989e12),
    "a100": Device(79.3, 312e12),
    "l40s": Device(44.5, 362e12),
    "rtx4090": Device(23.5, 165e12),
}


@dataclass(frozen=True)
class DoctorOptions:
    """On what the recipe is to run; everything below belongs to it and can be overridden."""

    device: str = "h100"
    """h100, h200, a100, l40s, rtx4090, or 'this': the CPU here, whose arithmetic is measured for a second."""
    num_processes: int = 1
    """Devices that share the batch, as torchrun starts them."""
    utilisation: float = 0.3
    """Share of the device's arithmetic that training is supposed to reach."""
    max_steps: int | None = None
    """Steps of the trained network."""
    config: Path | None = None
    """A config.yaml of didi distill; instead of a recipe, or over it."""
    preset: str | None = None
    """The objective of the 'paper' or of the authors' 'released' code instead of ours."""


@dataclass(frozen=True)
class DoctorCommand:
    """Memory, arithmetic and time of a recipe, and whether it fits: didi doctor RECIPE [flags of distill]."""

    run: Annotated[DoctorOptions, tyro.conf.arg(name="")]
    config: Annotated[DistillConfig, tyro.conf.arg(name="")]


def doctor(args: Sequence[str]) -> None:
    """Run ``didi doctor`` with the words after it."""
    options, config = resolve("doctor", DoctorCommand(DoctorOptions(), DistillConfig()), DISTILL, args)
    if options.num_processes < 1 or not 0 < options.utilisation <= 1:
        raise UsageError(
            f"num-processes is 1 or more and utilisation lies in (0, 1]; got {options.num_processes} and "
            f"{options.utilisation}"
        )
    check_divides(config.loop.batch_size, options.num_processes)
    device, told = _device(options.device)
    dtype = None if options.device == "this" and config.loop.precision != "bf16" else torch.bfloat16
    dtype = None if config.loop.precision == "float32" else dtype
    shape = _shape(config)
    table = Table(
        title=f"{config.recipe} on {options.num_processes} x {told}, {'float32' if dtype is None else 'bf16 autocast'}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("training", no_wrap=True)
    for name in ("params", "trained", "weights", "moments", "peak", "FLOP", "hours", "fits"):
        table.add_column(name, justify="right", no_wrap=True)
    common: dict[str, Any] = {"num_processes": options.num_processes, "dtype": dtype}
    for name, way in _ways(config, options.num_processes):
        budget = (
            distill_budget(way, shape, **common)
            if isinstance(way, DistillConfig)
            else pretrain_budget(way, teacher_shape(way.recipe), **common)
        )
        hours = budget.total_flops / (device.flops * options.utilisation * options.num_processes) / 3600
        table.add_row(
            name,
            *(f"{_short(number / 1e6)}M" for number in (budget.parameters, budget.trained)),
            *(_short(size / GIB) for size in (budget.weights, budget.moments, budget.peak)),
            f"{budget.flops:.1e}",
            _short(hours),
            "yes" if budget.peak / GIB < device.memory else "no",
        )
    console = ResultConsole()
    console.print(table)
    console.print(
        f"GiB on each device, which has {device.memory:.1f}; FLOP of a step on all; hours if {options.utilisation:.0%} "
        f"of {device.flops:.3g} operations a second are reached. The model: docs/scale.md.",
        soft_wrap=True,
    )
    if not adapters.are_available():
        console.print("For the shared trunk: pip install 'didi-instruct[lora]'.")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ways(config: DistillConfig, num_processes: int) -> Iterator[tuple[str, PretrainConfig | DistillConfig]]:
    """Each way to train that the settings allow, where it makes a difference."""
    jobs: dict[str, PretrainConfig | DistillConfig] = {}
    if config.recipe in VOCABULARIES:
        jobs["pretrain"] = PRETRAIN[config.recipe]
    plain = jobs["distill"] = replace(config, lora_rank=None, loop=replace(config.loop, fsdp=False))
    for name, job in jobs.items():
        yield name, job
        if num_processes > 1:
            with contextlib.suppress(UsageError):  # Muon's matrices are not sharded
                yield f"{name}, fsdp", replace(job, loop=replace(job.loop, fsdp=True))
    if adapters.are_available() or config.lora_rank is not None:
        rank = config.lora_rank or LORA_RANK
        with contextlib.suppress(UsageError):  # nor adapted
            yield f"distill, lora {rank}", replace(plain, lora_rank=rank)


def _shape(config: DistillConfig) -> DiTConfig:
    """Of the teacher: the bundle's that is named, else the one that the recipe pre-trains."""
    return load(config.teacher).denoiser().config if config.teacher else teacher_shape(config.recipe)


def _device(name: str) -> tuple[Device, str]:
    if name == "this":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return Device(memory, _measured_flops()), machine_name(torch.device("cpu"))
    if name not in DEVICES:
        raise UsageError(f"a device is one of {', '.join(DEVICES)} or this; got {name!r}")
    return DEVICES[name], name.upper()


def _measured_flops(size: int = 1024, seconds: float = 1.0) -> float:
    """Float32 operations a second of matrix products."""
    a, b = torch.randn(2, size, size)
    a @ b
    num, begin = 0, time.perf_counter()
    while (taken := time.perf_counter() - begin) < seconds:
        a @ b
        num += 1
    return num * 2 * size**3 / taken
