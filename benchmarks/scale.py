"""The figures of docs/scale.md: memory by ``didi doctor`` and by real steps, and the speed of two processes.

    python benchmarks/scale.py measure --runs DIR [--only NAME ...]
    python benchmarks/scale.py page    [--runs DIR]

``measure`` runs a few steps of each configuration with random weights in a separate process and stores the results, so
that it can be interrupted and resumed; it needs 20 GiB of memory. ``page`` updates the tables of the page.
"""

import argparse
import gc
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# Freed blocks are returned to the system at once, so that the size of the process is that of its tensors.
os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"

import torch
from pages import DOCS, renew, write_json

from didi.data.source import RandomSource
from didi.diffusion.absorbing import Absorbing
from didi.evaluation.machine import machine_name
from didi.files import write_atomically
from didi.markdown import markdown_table
from didi.methods.base import Inputs
from didi.methods.didi_settings import DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.trajectories import masked_log_probs
from didi.models.bundle import Bundle, load
from didi.models.dit import DiT
from didi.process_group import init_process_group
from didi.recipes import DISTILL, PRETRAIN, teacher_shape
from didi.training.dry_run import DryRun, Estimate, estimate
from didi.training.trainer import make_trainer

STORED = DOCS / "results" / "scale.json"
CPU = torch.device("cpu")
MIB = 2**20
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHARED = "owt-424m, shared trunk"
PASS = "owt-424m, a pass of the teacher"
TWO = "one of two processes"  # part of the names of configurations that run in two processes


def reduced(recipe: str, *, length: int = 512, states: int = 2, **changes: Any) -> DistillConfig:
    """A recipe with a length and a batch size that fit the memory of a CPU."""
    base = DISTILL[recipe]
    return replace(
        base,
        data=replace(base.data, length=length),
        objective=replace(base.objective, completions=2),
        discriminator=replace(base.discriminator, warmup_steps=1, **changes.pop("discriminator", {})),
        loop=replace(base.loop, steps=2, batch_size=states, validation_sequences=2, **changes.pop("loop", {})),
        **changes,
    )


def pretraining(recipe: str) -> PretrainConfig:
    base = PRETRAIN[recipe]
    loop = replace(base.loop, steps=2, batch_size=4, accumulation=1)
    return replace(base, data=replace(base.data, length=512), loop=loop)


CONFIGURATIONS: dict[str, DistillConfig | PretrainConfig] = {
    "owt-169m, pre-training": pretraining("owt-169m"),
    "owt-169m": reduced("owt-169m"),
    "owt-169m, activation checkpointing": reduced("owt-169m", loop={"activation_checkpointing": True}),
    "owt-169m, shared trunk": reduced("owt-169m", lora_rank=16),
    "owt-169m, one of two processes, DDP": reduced("owt-169m"),
    "owt-169m, one of two processes, FSDP2": reduced("owt-169m", loop={"fsdp": True}),
    "owt-424m": reduced("owt-424m", length=256),
    SHARED: reduced("owt-424m", lora_rank=16, discriminator={"completions": 1}),
}


def status(field: str) -> int:
    """A size of this process from /proc in bytes."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert match
    return int(match[1]) * 1024


def peak_of(work: Callable[[], Any]) -> tuple[int, Any]:
    """Peak memory of ``work`` in bytes, without the memory before it, and its result; in this process."""
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    result = work()
    return status("VmHWM") - before, result


def steps_of_each(name: str) -> dict[str, Any]:
    """``steps_of`` in each of two processes; returns the result of the process with the higher peak."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*TORCHRUN, __file__, "rank", "--name", name, "--runs", folder]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        results = [json.loads(file.read_text("utf-8")) for file in Path(folder).iterdir()]
    return max(results, key=lambda result: result["measured"])


def rank(args: argparse.Namespace) -> None:
    with init_process_group() as group:
        write_atomically(args.runs / f"{group.rank}.json", json.dumps(steps_of(args.name)))


def steps_of(name: str) -> dict[str, Any]:
    """Measure all steps of a configuration; a distillation begins with a warm-up step of the discriminator."""
    torch.manual_seed(0)
    torch.mm(torch.ones(512, 512), torch.ones(512, 512))  # allocates the buffers of the libraries
    config = CONFIGURATIONS[name]

    def work() -> tuple[list[float], list[float]]:
        seconds, losses = [], []
        with tempfile.TemporaryDirectory() as folder:
            job = make_trainer(config, inputs_of(config)(Path(folder)))
        for step in range(job.num_steps):
            begin = time.perf_counter()
            metrics = job.step(step)
            seconds.append(time.perf_counter() - begin)
            losses += [float(value) for value in metrics.values()]
        return seconds, losses

    peak, (seconds, figures) = peak_of(work)
    return {
        "measured": peak,
        "seconds": seconds[-1],
        "finite": all(map(torch.isfinite, map(torch.tensor, figures))),
        "rows": config.loop.batch_size,
        "length": config.data.length,
    }


def inputs_of(config: DistillConfig | PretrainConfig) -> Callable[[Path], Inputs]:
    shape = teacher_shape(config.recipe)

    def inputs(folder: Path) -> Inputs:
        source = RandomSource(config.data.length, shape.vocab_size)
        if isinstance(config, PretrainConfig):
            return Inputs(source, CPU, folder)
        return Inputs(source, CPU, folder, Bundle(teacher=DiT(replace(shape, dropout=0.0)).eval()))

    return inputs


def predicted(name: str) -> dict[str, Any]:
    """Peak memory, parameters and arithmetic of a configuration by dry runs."""
    config = CONFIGURATIONS[name]
    needs: Estimate = estimate(config, inputs_of(config), num_processes=2 if TWO in name else 1)
    run: DryRun = needs.of(config.loop.batch_size)
    return {
        "predicted": needs.peak(config.loop.batch_size),
        "parameters": run.parameters,
        "trained": run.trained,
        "flops": run.flops,
    }


def pass_of_the_teacher() -> dict[str, Any]:
    """Memory of the teacher's weights and of the graph of its predictions at the states of a shared-trunk student."""
    torch.manual_seed(0)
    config = CONFIGURATIONS[SHARED]
    shape = replace(teacher_shape(config.recipe), dropout=0.0)
    states, length = config.loop.batch_size, config.data.length
    process = Absorbing(shape.mask_id)

    def work() -> None:
        teacher = DiT(shape)
        first = torch.full((1, length), shape.mask_id)
        z = torch.zeros(states, length, dtype=torch.long)
        z[:, : length // 2] = shape.mask_id
        kept = [
            masked_log_probs(teacher, process, tokens, torch.full((len(tokens),), 0.5, dtype=torch.float64))
            for tokens in (first, z)
        ]
        del kept

    return {"measured": peak_of(work)[0]}


def two_processes(rounds: int = 2) -> dict[str, Any]:
    """The same distillation by one process and by two, with one thread each, in interleaved rounds."""
    flags = ["--max-steps", "12", "--loop.batch-size", "32", "--discriminator.warmup-steps", "4"]
    flags += ["--loop.validate-every", "1000", "--loop.log-every", "50", "--device", "cpu"]
    launchers = {"one": [sys.executable], "two": TORCHRUN, "sharded": TORCHRUN}
    speeds: dict[str, list[float]] = {name: [] for name in launchers}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for name, launcher in launchers.items():
                out = Path(scratch, f"{name}-{number}")
                more = ["--loop.fsdp"] if name == "sharded" else []
                command = [*launcher, "-m", "didi", "distill", "tiny-news", "--out", str(out), *flags, *more]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, check=True, capture_output=True, env=environment)
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
                speeds[name].append(next(line["tokens_per_second"] for line in lines if "tokens_per_second" in line))
        students = {name: load(Path(scratch, f"{name}-0", "bundle")).student for name in launchers}
    first = list(students["one"].parameters())
    record: dict[str, Any] = {"command": f"didi distill tiny-news {' '.join(flags)}"}
    for name in ("two", "sharded"):
        ratios = sorted(speed / base for base, speed in zip(speeds["one"], speeds[name], strict=True))
        gap = max(float((a - b).abs().max()) for a, b in zip(first, students[name].parameters(), strict=True))
        record[name] = {"speed": (statistics.median(ratios), ratios[0], ratios[-1]), "gap": gap}
    record["largest"] = max(float(parameter.abs().max()) for parameter in first)
    return record


def measure(args: argparse.Namespace) -> None:
    args.runs.mkdir(parents=True, exist_ok=True)
    work: dict[str, Callable[[], Any]] = {PASS: pass_of_the_teacher, "two processes": two_processes}
    for name in args.only or [*CONFIGURATIONS, *work]:
        file = args.runs / f"{name}.json"
        if file.is_file():
            continue
        print(name, flush=True)
        if TWO in name:
            record = steps_of_each(name)
        else:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                record = pool.apply(work[name]) if name in work else pool.apply(steps_of, [name])
        if name in CONFIGURATIONS:
            record |= predicted(name)
        write_atomically(file, json.dumps(record | {"machine": machine_name(CPU)}))


HEADER = ["configuration", "batch", "length", "parameters", "trained", "predicted MiB", "measured MiB"]
HEADER += ["predicted / measured", "s / step", "losses finite"]
TWO_HEADER = ["two processes", "steps per second, relative to one process", "largest difference of weights"]


def page(args: argparse.Namespace) -> None:
    if args.runs:
        files = {name: args.runs / f"{name}.json" for name in [*CONFIGURATIONS, PASS, "two processes"]}
        record = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}
        write_json(STORED, record)
    record = json.loads(STORED.read_text("utf-8"))
    machine = next(iter(record.values()))["machine"]
    body = []
    for name, row in ((name, record[name]) for name in CONFIGURATIONS if name in record):
        sizes = [f"{row[field] / 1e6:,.0f} M" for field in ("parameters", "trained")]
        memory = [f"{row[field] / MIB:,.0f}" for field in ("predicted", "measured")]
        rest = [f"{row['seconds']:.0f}", "yes" if row["finite"] else "**no**"]
        ratio = f"{row['predicted'] / row['measured']:.2f}"
        body.append([name, row["rows"], row["length"], *sizes, *memory, ratio, *rest])
    lines = markdown_table(HEADER, body, align="lrrrrrrrrl")
    lines.append(
        "\nRandom weights, float32, two steps of pre-training and three of distillation; batch: sequences or states; "
        f"length: tokens of each; {machine}.\n"
    )
    if {SHARED, PASS} <= record.keys():
        shared, alone = (record[name]["measured"] for name in (SHARED, PASS))
        lines.append(
            f"Shared trunk, 424 M: {shared / MIB:,.0f} MiB, {shared / alone:.2f} times the {alone / MIB:,.0f} MiB of "
            "the teacher's weights and the autograd graph of its predictions at the same states.\n"
        )
    if (two := record.get("two processes")) is not None:
        body = []
        for name, label in (("two", "DDP"), ("sharded", "FSDP2")):
            speed, low, high = two[name]["speed"]
            body.append([label, f"{speed:.2f} [{low:.2f}, {high:.2f}]", f"{two[name]['gap']:.1e}"])
        lines += [f"`{two['command']}`\n", *markdown_table(TWO_HEADER, body)]
        lines.append(f"\nOne thread per process, gloo; the largest weight is {two['largest']:.2g}; {machine}.")
    lines.append("\n## Estimates for the paper's runs\n")
    for words in ("owt-169m", "owt-424m"):
        command = [sys.executable, "-m", "didi", "doctor", *words.split()]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        printed = [line.rstrip() for line in output.splitlines() if line.strip()]
        lines += ["```", f"$ didi doctor {words}", *printed, "```\n"]
    renew(DOCS / "scale.md", "scale.py", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--runs", type=Path, required=True)
    measuring.add_argument("--only", nargs="*")
    measuring.set_defaults(run=measure)
    of_rank = commands.add_parser("rank")  # started by torchrun in ``steps_of_each``
    of_rank.add_argument("--name", required=True)
    of_rank.add_argument("--runs", type=Path, required=True)
    of_rank.set_defaults(run=rank)
    writing = commands.add_parser("page")
    writing.add_argument("--runs", type=Path)
    writing.set_defaults(run=page)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
