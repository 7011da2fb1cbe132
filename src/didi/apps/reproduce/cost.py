"""Cost of a run of a study: sequence passes and wall time; memory and trained parameters by a dry run."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from didi.apps.train import distillation_source
from didi.files import json_text, write_atomically
from didi.methods.base import Inputs
from didi.methods.settings import DistillationConfig
from didi.models.bundle import load
from didi.training.dry_run import dry_run
from didi.training.run_folder import RunFolder


@dataclass(frozen=True)
class Cost:
    """Cost of a run.

    Attributes:
        sequence_passes: number of sequence passes, see ``training.passes``; NaN if the run does not count them.
        seconds: wall time from the start of the run to its bundle, summed over all parts of a run that was stopped and
            resumed, except parts whose process was killed.
    """

    sequence_passes: float = math.nan
    seconds: float = math.nan


@dataclass(frozen=True)
class Memory:
    """Memory of a distillation by a dry run.

    Attributes:
        peak_bytes: peak memory of live tensors in bytes, see ``training.live_memory``; NaN if a dry run, which computes
            no values, is not possible for the method.
        num_trained: number of trained parameters; NaN without a dry run.
    """

    peak_bytes: float = math.nan
    num_trained: float = math.nan


def sequence_passes(metrics: Path) -> float:
    """Sequence passes of a run, from its metrics.

    Args:
        metrics: ``metrics.jsonl``. A line has the mean passes per step since the line before; lines of validations
            have none and are skipped.

    Returns:
        The sum over all steps; NaN if no line has passes.
    """
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    rows = [row for row in map(_metrics_of_line, lines) if row.get("sequence_passes") is not None]
    steps = [0, *(row["step"] for row in rows)]
    if not rows:
        return math.nan
    return sum(row["sequence_passes"] * (row["step"] - before) for row, before in zip(rows, steps[:-1], strict=True))


def _metrics_of_line(line: str) -> dict[str, Any]:
    """The values of a line of metrics; empty for an incomplete line of a process that was killed."""
    try:
        metrics: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return metrics


@contextlib.contextmanager
def recorded(file: Path, folder: RunFolder) -> Iterator[None]:
    """Context that adds its wall time, as that of a part of the run in ``folder``, to the cost in ``file``."""
    before = read_cost(file).seconds if folder.has_run else 0.0
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds = (0.0 if math.isnan(before) else before) + time.perf_counter() - begin
        _write(file, Cost(sequence_passes(folder.metrics), seconds))


def read_cost(file: Path) -> Cost:
    """The recorded cost; NaN if nothing was recorded, as for a run of an earlier version."""
    return Cost(**_read(file))


def memory(config: DistillationConfig, teacher: str, file: Path) -> Memory:
    """Peak memory and trained parameters of a distillation, by a dry run; the result is cached in ``file``.

    Args:
        config: settings of the distillation.
        teacher: name or folder of the teacher's bundle.
        file: file of the cached result.
    """
    if file.is_file():
        return Memory(**_read(file))

    def inputs(folder: Path) -> Inputs:
        bundle = load(teacher)
        return Inputs(distillation_source(config, bundle), torch.device("cpu"), folder, bundle)

    try:
        needs = dry_run(config, inputs, config.loop.batch_size)
        result = Memory(float(needs.peak), float(needs.trained))
    except RuntimeError:  # the steps of the method depend on values; the report is written without its memory
        result = Memory()
    _write(file, result)
    return result


def _read(file: Path) -> dict[str, float]:
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: math.nan if value is None else value for name, value in record.items()}


def _write(file: Path, record: Cost | Memory) -> None:
    write_atomically(file, json_text(asdict(record)) + "\n")
