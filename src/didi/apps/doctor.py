"""``didi doctor``: memory, arithmetic and time that a recipe needs on a device, estimated by dry runs."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from didi.apps.console import ResultConsole
from didi.apps.settings import early, resolve
from didi.arguments import finite_number, one_of, whole_number
from didi.data.protein import is_protein_corpus
from didi.data.protein_source import random_source
from didi.data.source import RandomSource, Source
from didi.errors import UsageError, from_checkout
from didi.evaluation.machine import machine_name
from didi.methods import find_method
from didi.methods.base import Inputs, teacher_of
from didi.methods.settings import DistillationConfig, RunConfig
from didi.models import adapters
from didi.models.bundle import Bundle, load
from didi.models.networks import network_of
from didi.recipes import PRETRAIN, num_symbols, recipes_of, teacher_recipe, teacher_shape
from didi.training.distributed import check_batch_size
from didi.training.dry_run import CPU, Estimate, estimate

GIB = 2**30
LORA_RANK = 16
"""LoRA rank of the shared-trunk row, if the recipe sets none."""
USABLE = 0.8
"""Fraction of a device's memory that a run may use."""


class Device(NamedTuple):
    """A device: memory in GiB as the driver reports it, and dense bfloat16 operations a second by its data sheet."""

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
    """Device and length of the run; all flags below are settings of the recipe and can be overridden."""

    device: str = "h100"
    """h100, h200, a100, l40s, rtx4090, or this: the CPU of this machine, whose speed is measured for a second."""
    num_processes: int = 1
    """Number of devices that share the batch, one process each, as with torchrun."""
    utilisation: float = 0.3
    """Fraction of the device's operations a second that training is assumed to reach."""
    max_steps: int | None = None
    """Steps of the trained network."""
    method: str = "didi"
    """didi, sdtt, dcd, dimo or mmd; for a recipe of didi pretrain, elbo or duo."""
    config: Path | None = None
    """A config.yaml of an earlier run, instead of a recipe or overriding it."""
    preset: str | None = None
    """Objective instead of the recipe's: paper, released (the authors' code) or two-moves (docs/recipes.md)."""


def command_of(settings: RunConfig, recipes: Iterable[str]) -> Any:
    """A dataclass instance with options (``run``) and settings (``config``); fields are flags without a prefix."""
    flat = tyro.conf.arg(name="")
    kinds = [("run", Annotated[DoctorOptions, flat]), ("config", Annotated[type(settings), flat])]
    command = make_dataclass("DoctorCommand", kinds, frozen=True)
    command.__doc__ = (
        "Memory, arithmetic and time of a recipe by a dry run of its steps, and whether it fits: didi doctor RECIPE "
        f"[--method M] [flags of pretrain or distill]. RECIPE is one of {', '.join(recipes)}."
    )
    return command(DoctorOptions(), settings)


def doctor(args: Sequence[str]) -> None:
    """Run ``didi doctor`` with the arguments after the command's name."""
    method = early(args, "--method") or DoctorOptions.method
    recipes = recipes_of(method)
    options, config = resolve("doctor", command_of(find_method(method).settings_type(), recipes), recipes, args)
    whole_number("--num-processes", options.num_processes, low=1)
    finite_number("--utilisation", options.utilisation, low=0, high=1, is_low_open=True)
    check_batch_size(config.loop.batch_size, options.num_processes)
    if isinstance(config, DistillationConfig) and config.teacher:
        teacher_of(load(config.teacher))  # refuses an unfit teacher before the first dry run
    device, description = _device(options.device)
    precision = config.loop.precision
    if precision == "auto":
        precision = "float32" if options.device == "this" else "bf16"
    title = f"{config.recipe} on {options.num_processes} x {description}, {precision.replace('bf16', 'bf16 autocast')}"
    memory = _table(title, "weights", "average", "moments", "gradients", "step", "peak", "fits", "largest")
    arithmetic = _table(None, "params", "trained", "FLOP", "hours")
    for name, variant in _variants(config, options.num_processes):
        print(f"dry run: {name}", file=sys.stderr, flush=True)
        needs = _estimate(variant, precision, options.num_processes)
        run, peak = needs.of(variant.loop.batch_size), needs.peak(variant.loop.batch_size)
        sizes = (run.weights, run.average, run.moments, run.gradients)
        step = peak - run.weights - run.average - run.moments
        memory.add_row(
            name,
            *(_short(size / GIB) for size in (*sizes, step, peak)),
            "yes" if peak <= USABLE * device.memory * GIB else "no",
            str(needs.largest_batch(device.memory * GIB * USABLE, options.num_processes) or "-"),
        )
        hours = run.total_flops / (device.flops * options.utilisation * options.num_processes) / 3600
        numbers = (f"{_short(number / 1e6)}M" for number in (run.parameters, run.trained))
        arithmetic.add_row(name, *numbers, f"{run.flops:.1e}", _short(hours))
    console = ResultConsole()
    console.print(memory)
    console.print(arithmetic)
    console.print(
        f"GiB on each device, which has {device.memory:.1f}; fits and largest leave a fifth of it free. FLOP of a "
        f"step on all; hours if {options.utilisation:.0%} of {device.flops:.3g} operations a second are reached. By "
        "dry runs on this CPU: docs/scale.md.",
        soft_wrap=True,
    )
    if not adapters.are_available():
        console.print(f"For the shared trunk (lora): {from_checkout('lora')}", markup=False, soft_wrap=True)


def _table(title: str | None, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("training", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.01 else "<0.01"


def _variants(config: RunConfig, num_processes: int) -> Iterator[tuple[str, RunConfig]]:
    """Rows of the table: pre-training of the teacher, the run itself, each with FSDP, and a shared trunk with LoRA.

    Rows that the settings do not allow are left out.
    """
    jobs: dict[str, RunConfig] = {}
    plain = config
    if isinstance(config, DistillationConfig):
        if teacher_recipe(config) in PRETRAIN:
            pretraining = PRETRAIN[teacher_recipe(config)]
            size = -(-pretraining.loop.batch_size // num_processes) * num_processes  # next multiple of num_processes
            name = "pretrain" if size == pretraining.loop.batch_size else f"pretrain, batch {size}"
            jobs[name] = replace(pretraining, loop=replace(pretraining.loop, batch_size=size))
        plain = jobs["distill"] = replace(_adapted(config, None), loop=replace(config.loop, fsdp=False))
    else:
        jobs["pretrain"] = replace(config, loop=replace(config.loop, fsdp=False))
    for name, job in jobs.items():
        yield name, job
        if num_processes > 1:
            with contextlib.suppress(UsageError):  # FSDP does not support Muon
                yield f"{name}, fsdp", replace(job, loop=replace(job.loop, fsdp=True))
    if hasattr(config, "lora_rank") and (adapters.are_available() or config.lora_rank is not None):
        rank = config.lora_rank or LORA_RANK
        with contextlib.suppress(UsageError):  # LoRA does not support Muon either
            yield f"distill, lora {rank}", _adapted(plain, rank)


def _adapted(config: Any, rank: int | None) -> Any:
    return replace(config, lora_rank=rank) if hasattr(config, "lora_rank") else config


def _estimate(config: RunConfig, precision: str, num_processes: int) -> Estimate:
    """Estimate the needs of a configuration by dry runs, with a teacher of the right shape and random weights."""
    data, loop = config.data, replace(config.loop, precision=cast(Any, precision))
    if isinstance(config, DistillationConfig):
        bundle = load(config.teacher) if config.teacher else None
        shape = teacher_of(bundle).config if bundle else teacher_shape(teacher_recipe(config))

    def source_of(vocab_size: int) -> Source:
        return random_source(data.length) if is_protein_corpus(data.corpus) else RandomSource(data.length, vocab_size)

    def inputs(folder: Path) -> Inputs:
        if not isinstance(config, DistillationConfig):
            return Inputs(source_of(num_symbols(data)), CPU, folder)
        network = network_of(replace(shape, dropout=0.0)).eval()
        teacher = Bundle(teacher=network)
        if bundle is not None:
            teacher.process = bundle.process
        return Inputs(source_of(shape.vocab_size), CPU, folder, teacher)

    return estimate(replace(config, loop=loop), inputs, num_processes=num_processes)


def _device(name: str) -> tuple[Device, str]:
    if name == "this":
        if not hasattr(os, "sysconf"):  # Windows
            raise UsageError(f"this system does not report its memory: give --device, one of {', '.join(DEVICES)}")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return Device(memory, _measured_flops()), machine_name(torch.device("cpu"))
    one_of("--device", name, (*DEVICES, "this"))
    return DEVICES[name], name.upper()


def _measured_flops(size: int = 1024, seconds: float = 1.0) -> float:
    """Float32 operations a second of matrix products, measured."""
    a, b = torch.randn(2, size, size)
    a @ b
    num, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        a @ b
        num += 1
    return num * 2 * size**3 / elapsed
