"""What a run of a study costs: passes, wall time, and, by a dry run, memory and trained parameters."""

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
    """What a run has cost.

    Attributes:
        sequence_passes: sequences through networks, see ``training.passes``; NaN if the run does not count them.
        seconds: wall time from the first step to the bundle, over all parts of a run that was stopped and resumed,
            except parts whose process was killed.
    """

    sequence_passes: float = math.nan
    seconds: float = math.nan


@dataclass(frozen=True)
class Memory:
    """What a dry run of a distillation finds.

    Attributes:
        peak_bytes: most bytes of tensors that are alive at one time, see ``training.live_memory``; NaN where the method
            does not run without values.
        num_trained: parameters that a gradient changes.
    """

    peak_bytes: float = math.nan
    num_trained: float = math.nan


def sequence_passes(metrics: Path) -> float:
    """The passes of a run, from its metrics: a line holds the mean over the steps since the line before.

    Args:
        metrics: ``metrics.jsonl``; lines of validations, which count no passes, are left out.

    Returns:
        The sum over all steps; NaN where no line counts passes.
    """
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    rows = [row for row in map(_figures, lines) if row.get("sequence_passes") is not None]
    steps = [0, *(row["step"] for row in rows)]
    if not rows:
        return math.nan
    return sum(row["sequence_passes"] * (row["step"] - before) for row, before in zip(rows, steps[:-1], strict=True))


def _figures(line: str) -> dict[str, Any]:
    """One line of metrics; none of one that a kill has cut."""
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return found


@contextlib.contextmanager
def recorded(file: Path, folder: RunFolder) -> Iterator[None]:
    """Add the wall time of the block, a part of the run in ``folder``, to that of the parts before it in ``file``."""
    before = read_cost(file).seconds if folder.has_run else 0.0
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds = (0.0 if math.isnan(before) else before) + time.perf_counter() - begin
        _write(file, Cost(sequence_passes(folder.metrics), seconds))


def read_cost(file: Path) -> Cost:
    """What was recorded; NaN where nothing was, as for a run of an earlier version."""
    return Cost(**_read(file))


def memory(config: DistillationConfig, teacher: str, file: Path) -> Memory:
    """Peak of live memory and trained parameters of a distillation, by a dry run that ``file`` keeps.

    Args:
        config: settings of the distillation.
        teacher: bundle of its teacher.
        file: where the figures are kept.
    """
    if file.is_file():
        return Memory(**_read(file))

    def inputs(folder: Path) -> Inputs:
        bundle = load(teacher)
        return Inputs(distillation_source(config, bundle), torch.device("cpu"), folder, bundle)

    try:
        found = dry_run(config, inputs, config.loop.batch_size)
        measured = Memory(float(found.peak), float(found.trained))
    except RuntimeError:  # a method whose steps depend on values: the report is not lost for it
        measured = Memory()
    _write(file, measured)
    return measured


def _read(file: Path) -> dict[str, float]:
    record = json.loads(file.read_text()) if file.is_file() else {}
    return {name: math.nan if value is None else value for name, value in record.items()}


def _write(file: Path, record: Cost | Memory) -> None:
    write_atomically(file, json_text(asdict(record)) + "\n")
