"""Faults injected into runs: kills, damaged checkpoints, requests to end; see ``reliability``."""

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
    """A real distillation in which everything happens within seconds."""
    base = DISTILL["markov"]
    loop = replace(
        base.loop,
        steps=num_steps,
        batch_size=4,
        validate_every=5,
        validation_sequences=8,
        checkpoint_every=1,
        log_every=1,  # else a line's mean begins where the run was resumed
    )
    return replace(base, loop=loop, discriminator=replace(base.discriminator, warmup_steps=3, guidance_steps=2))


def work(config: DistillConfig, path: Path) -> None:
    """Begin the run or go on with it; quiet."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of the process
    try:
        folder = RunFolder(path)
        distill_run(config, folder, resume=folder.has_run, device=CPU)
    except Interrupted:
        sys.exit(130)


def processes() -> Any:
    """A context whose processes begin at once, forked from one that has read the library."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["didi.apps.train"])
    return context


def process(config: DistillConfig, path: Path) -> Any:
    return processes().Process(target=work, args=(config, path))


def finished(config: DistillConfig, path: Path) -> Path:
    """Let the run come to its end."""
    running = process(config, path)
    running.start()
    running.join()
    if running.exitcode:
        raise RuntimeError(f"the run in {path} ended with status {running.exitcode}")
    return path


def is_same(one: Path, other: Path, *, has_log: bool = True) -> bool:
    """Whether two runs left the same bundle, byte for byte, and the same figures but for their speed."""
    files = [sorted(p.relative_to(path / "bundle") for p in (path / "bundle").rglob("*.*")) for path in (one, other)]
    if files[0] != files[1]:
        return False
    logs = [
        [json.loads(line) | {"tokens_per_second": 0} for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (one, other)
    ]
    return (logs[0] == logs[1] or not has_log) and all(
        (one / "bundle" / file).read_bytes() == (other / "bundle" / file).read_bytes() for file in files[0]
    )


def killed(num_kills: int, folder: Path, *, num_steps: int = 12, seed: int = 0) -> dict[str, int]:
    """Kill runs with SIGKILL at random moments, each begun anew, and let them go on: how many ended as an unkilled one.

    Moments that come after a run's end do not count; another is drawn.
    """
    config, draws = small_run(num_steps), random.Random(seed)
    begin = time.perf_counter()
    straight = finished(config, folder / "straight")
    seconds = time.perf_counter() - begin
    found = Counter(runs=0, recovered=0)
    while found["runs"] < num_kills:
        path = folder / f"killed-{found['runs']}"
        running = process(config, path)
        running.start()
        running.join(draws.uniform(0, seconds))
        if running.exitcode is None:
            running.kill()
            running.join()
            found["runs"] += 1
            found["recovered"] += is_same(straight, finished(config, path))
        shutil.rmtree(path, ignore_errors=True)
    return dict(found)


def damaged(num: int, folder: Path, *, seed: int = 0) -> dict[str, int]:
    """Cut or flip a bit of the newest checkpoint: how often the one before it was taken, or nothing had changed."""
    draws = random.Random(seed)
    run = finished(replace(small_run(), loop=replace(small_run().loop, steps=4)), folder / "damaged")
    newest = sorted((run / "checkpoints").glob(PATTERN))[-1]
    content, found = newest.read_bytes(), Counter(runs=0, recovered=0)
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
        found["runs"] += 1
        found["recovered"] += latest is not None and latest[0] in ((last, before) if is_whole else (before,))
    return dict(found)


def terminated(num: int, folder: Path, *, seed: int = 0) -> dict[str, float]:
    """SIGTERM, as a scheduler sends it, at random moments: state saved, the longest wait, and the same end."""
    config, draws = small_run(), random.Random(seed)
    straight = finished(config, folder / "untouched")
    found: dict[str, float] = {"runs": 0, "recovered": 0, "seconds": 0.0}
    while found["runs"] < num:
        path = folder / f"terminated-{found['runs']:.0f}"
        running = process(config, path)
        running.start()
        while running.exitcode is None and not any((path / "checkpoints").glob(PATTERN)):  # it trains
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.5))
        if running.exitcode is None:
            begin = time.perf_counter()
            os.kill(running.pid, signal.SIGTERM)
            running.join()
            if running.exitcode == 130:
                found["seconds"] = max(found["seconds"], time.perf_counter() - begin)
                found["runs"] += 1
                # The log has a line more, of the step at which the run was stopped.
                found["recovered"] += is_same(straight, finished(config, path), has_log=False)
        shutil.rmtree(path, ignore_errors=True)
    return found
