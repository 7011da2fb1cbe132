"""Faults injected into runs: SIGKILL, damaged checkpoints and SIGTERM; see ``reliability``."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from didi.apps.train import distill_run
from didi.methods.didi_settings import DistillConfig
from didi.recipes import DISTILL
from didi.training.checkpoint import PATTERN, load_latest
from didi.training.loop import Interrupted, RunFolder

CPU = torch.device("cpu")


def small_run(num_steps: int = 12) -> DistillConfig:
    """A real distillation that takes seconds, with validations, checkpoints and guidance steps."""
    base = DISTILL["markov"]
    loop = replace(
        base.loop,
        steps=num_steps,
        batch_size=4,
        validate_every=5,
        validation_sequences=8,
        checkpoint_every=1,
        log_every=1,  # otherwise the means in the log depend on the step at which the run was resumed
    )
    return replace(base, loop=loop, discriminator=replace(base.discriminator, warmup_steps=3, guidance_steps=2))


def work(config: DistillConfig, path: Path) -> None:
    """Start or resume the run, without output."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - open until the process ends
    try:
        folder = RunFolder(path)
        distill_run(config, folder, resume=folder.has_run, device=CPU)
    except Interrupted:
        sys.exit(130)


def processes() -> Any:
    """A multiprocessing context whose processes start fast, forked from a server that has imported the library."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["didi.apps.train"])
    return context


def process(config: DistillConfig, path: Path) -> Any:
    return processes().Process(target=work, args=(config, path))


def finished(config: DistillConfig, path: Path) -> Path:
    """Run or resume a run to its end; returns its path."""
    running = process(config, path)
    running.start()
    running.join()
    if running.exitcode:
        raise RuntimeError(f"the run in {path} ended with status {running.exitcode}")
    return path


def is_same(run: Path, other: Path, *, has_log: bool = True) -> bool:
    """Whether two runs have the same bundle, byte for byte, and with ``has_log`` the same metrics except the speed."""
    files = [sorted(p.relative_to(path / "bundle") for p in (path / "bundle").rglob("*.*")) for path in (run, other)]
    if files[0] != files[1]:
        return False
    logs = [
        [
            json.loads(line) | {"tokens_per_second": 0}
            for line in (path / "metrics.jsonl").read_text("utf-8").splitlines()
        ]
        for path in (run, other)
    ]
    return (logs[0] == logs[1] or not has_log) and all(
        (run / "bundle" / file).read_bytes() == (other / "bundle" / file).read_bytes() for file in files[0]
    )


def killed(num_kills: int, folder: Path, *, num_steps: int = 12, seed: int = 0) -> dict[str, int]:
    """Kill new runs with SIGKILL at random times and resume them; counts runs, and runs equal to an uninterrupted run.

    A time after the end of a run does not count; another time is drawn.
    """
    config, draws = small_run(num_steps), random.Random(seed)
    begin = time.perf_counter()
    uninterrupted = finished(config, folder / "straight")
    seconds = time.perf_counter() - begin
    counts = Counter(runs=0, recovered=0)
    while counts["runs"] < num_kills:
        path = folder / f"killed-{counts['runs']}"
        running = process(config, path)
        running.start()
        running.join(draws.uniform(0, seconds))
        if running.exitcode is None:
            running.kill()
            running.join()
            counts["runs"] += 1
            counts["recovered"] += is_same(uninterrupted, finished(config, path))
        shutil.rmtree(path, ignore_errors=True)
    return dict(counts)


def damaged(num: int, folder: Path, *, seed: int = 0) -> dict[str, int]:
    """Truncate the newest checkpoint or flip one of its bits; counts how often loading takes the checkpoint before it.

    A flipped bit in the padding of the header damages nothing; the newest checkpoint is then right too.
    """
    draws = random.Random(seed)
    run = finished(replace(small_run(), loop=replace(small_run().loop, steps=4)), folder / "damaged")
    newest = sorted((run / "checkpoints").glob(PATTERN))[-1]
    content, counts = newest.read_bytes(), Counter(runs=0, recovered=0)
    last, before = int(newest.stem[5:]), int(newest.stem[5:]) - 1
    for _ in range(num):
        if draws.random() < 0.5:
            newest.write_bytes(content[: draws.randrange(len(content))])
            is_whole = False
        else:
            position = draws.randrange(len(content))
            newest.write_bytes(
                content[:position] + bytes([content[position] ^ 1 << draws.randrange(8)]) + content[position + 1 :]
            )
            is_whole = chr(content[position]) == " "  # padding of the header
        latest = load_latest(run / "checkpoints")
        counts["runs"] += 1
        counts["recovered"] += latest is not None and latest[0] in ((last, before) if is_whole else (before,))
    return dict(counts)


def terminated(num: int, folder: Path, *, seed: int = 0) -> dict[str, float]:
    """Stop runs with SIGTERM, as a batch scheduler does, at random times, and resume them.

    Counts runs, and runs equal to an uninterrupted run; ``seconds`` is the longest time to save the state.
    """
    config, draws = small_run(), random.Random(seed)
    uninterrupted = finished(config, folder / "untouched")
    counts: dict[str, float] = {"runs": 0, "recovered": 0, "seconds": 0.0}
    while counts["runs"] < num:
        path = folder / f"terminated-{counts['runs']:.0f}"
        running = process(config, path)
        running.start()
        while running.exitcode is None and not any((path / "checkpoints").glob(PATTERN)):  # until training has begun
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.5))
        if running.exitcode is None:
            begin = time.perf_counter()
            os.kill(running.pid, signal.SIGTERM)
            running.join()
            if running.exitcode == 130:
                counts["seconds"] = max(counts["seconds"], time.perf_counter() - begin)
                counts["runs"] += 1
                # The log is not compared: it has one line more, for the step at which the run was stopped.
                counts["recovered"] += is_same(uninterrupted, finished(config, path), has_log=False)
        shutil.rmtree(path, ignore_errors=True)
    return counts
