"""The training loop of all methods: step, log, validate, checkpoint, stop, resume."""

import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from didi.errors import Diverged, Interrupted
from didi.methods.base import Metrics
from didi.methods.settings import LoopConfig
from didi.process_group import process_group
from didi.training.checkpoint import load_latest, save_checkpoint
from didi.training.loggers import MetricsLogger, open_loggers
from didi.training.run_folder import RunFolder


@runtime_checkable
class Job(Protocol):
    """Interface of the loop to the trainer.

    Attributes:
        num_steps: number of steps of the whole run.
        tokens_per_step: number of tokens in a step, for the log.
    """

    num_steps: int
    tokens_per_step: int

    def step(self, step: int) -> Metrics:
        """Run step number ``step``, from 0; its random numbers depend on the seed and on ``step`` only."""
        ...

    def validate(self) -> dict[str, float]:
        """Metrics on the validation set."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state that later steps depend on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        ...


def run(job: Job, config: LoopConfig, folder: RunFolder, *, resume: bool) -> None:
    """Run all steps of ``job``; with ``resume`` and a checkpoint, start from the newest checkpoint.

    All processes take part in steps, validations and the gathering of the state; the main process alone writes files.
    An update whose loss or gradient is not finite changes no weight and no average (``Trainer.step``); more such steps
    than ``config.max_skipped_steps`` between two log lines end the run.

    Args:
        job: the trainer.
        config: intervals of logs, validations and checkpoints, in steps.
        folder: folder of the run.
        resume: whether to start from the newest checkpoint of the folder.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
        Diverged: too many steps, or a metric of a validation, were not finite; existing checkpoints are kept.
    """
    begin = 0
    if resume and (latest := load_latest(folder.checkpoints)) is not None:
        begin, state = latest
        job.load_state_dict(state)
    is_main = process_group().is_main
    if is_main:
        folder.cut_metrics(begin)
    loggers = open_loggers(config.loggers, folder.path, begin)
    meter = _Meter(job, folder, begin, config.max_skipped_steps, loggers)
    with _stop_signals() as stop, meter:
        for step in range(begin, job.num_steps):
            meter.add(job.step(step))
            done = step + 1
            is_stopping = process_group().any(bool(stop))
            is_last = done == job.num_steps or is_stopping
            if done % config.log_every == 0 or is_last:
                meter.write(done)
            if done % config.validate_every == 0 or done == job.num_steps:
                with meter.paused():
                    meter.log(done, metrics := job.validate())
                _refuse_not_finite(metrics, done, folder)
            if done % config.checkpoint_every == 0 or is_last:
                with meter.paused():
                    state = job.state_dict()
                    if is_main:
                        save_checkpoint(folder.checkpoints, done, state, keep=config.keep_checkpoints)
            if is_stopping and done < job.num_steps:
                raise Interrupted(f"stopped at step {done} of {job.num_steps}, saved")


def _refuse_not_finite(metrics: Mapping[str, float], step: int, folder: RunFolder) -> None:
    """End a run whose validation is not finite, before a checkpoint or a bundle is saved."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if process_group().any(bool(bad)):
        note = "; earlier checkpoints are kept" if folder.has_checkpoint else ""
        raise Diverged(
            f"{bad[0] if bad else 'a validation'} is not finite after step {step}, so that neither a checkpoint nor a "
            f"bundle is saved{note}: lower the learning rate and start again in another folder"
        )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list to which Ctrl-C and SIGTERM append their signal number; a second signal raises KeyboardInterrupt."""
    received: list[int] = []

    def receive(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Meter:
    """Averages metrics between two log lines and writes them to the metrics file, the loggers and stderr."""

    def __init__(
        self, job: Job, folder: RunFolder, begin: int, max_skipped: int, loggers: Sequence[MetricsLogger]
    ) -> None:
        self._loggers = loggers
        self._job, self._folder, self._begin, self._max_skipped = job, folder, begin, max_skipped
        self._steps: list[tuple[list[str], Tensor]] = []
        self._since = time.perf_counter()
        self._is_main = process_group().is_main
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
            disable=not (self._console.is_terminal and self._is_main),
        )

    def __enter__(self) -> "_Meter":
        self._progress.start()
        self._task = self._progress.add_task("steps", total=self._job.num_steps, completed=self._begin, metrics="")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for logger in self._loggers:
            logger.close()

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one step, without waiting for the device."""
        device = next((value.device for value in metrics.values() if isinstance(value, Tensor)), None)
        values = [torch.as_tensor(value, dtype=torch.float64).detach().to(device) for value in metrics.values()]
        self._steps.append((list(metrics), torch.stack(values)))
        self._progress.advance(self._task)

    def write(self, step: int) -> None:
        """Log the means since the last line, over steps in which all metrics are finite.

        Raises:
            Diverged: more steps than allowed are not finite.
        """
        if not self._steps:
            return
        columns: dict[str, list[float]] = {}
        skipped: list[str] = []  # for each skipped step, its first metric that is not finite
        means = process_group().mean(torch.cat([values for _, values in self._steps]))
        rows = means.split([len(names) for names, _ in self._steps])
        for (names, _), values in zip(self._steps, rows, strict=True):
            row = dict(zip(names, values.tolist(), strict=True))
            bad = [name for name, value in row.items() if not math.isfinite(value)]
            skipped += bad[:1]
            if not bad:
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
        seconds = time.perf_counter() - self._since
        metrics = {name: sum(column) / len(column) for name, column in columns.items()}
        metrics["tokens_per_second"] = len(self._steps) * self._job.tokens_per_step / seconds
        self._steps, self._since = [], time.perf_counter()
        if len(skipped) > self._max_skipped:
            note = "the last checkpoint is kept" if self._folder.has_checkpoint else "there is no checkpoint yet"
            raise Diverged(
                f"{skipped[0]} is not finite in {len(skipped)} of the steps up to {step}; {note}: start again in "
                "another folder, with a lower learning rate or a larger loop.max_skipped_steps"
            )
        if skipped:
            metrics["skipped_steps"] = float(len(skipped))
        self.log(step, metrics)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one line of metrics; main process only."""
        if not self._is_main:
            return
        self._folder.log({"step": step, **metrics})
        for logger in self._loggers:
            logger.log(step, metrics)
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._progress.disable:
            print(f"step {step}/{self._job.num_steps}  {text}", file=sys.stderr, flush=True)
        else:
            self._progress.update(self._task, metrics=text[: max(20, self._console.width - 60)])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time within the context from the training time."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Autocast dtype for the setting ``loop.precision``; None for float32 without autocast."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.bfloat16
    return None
