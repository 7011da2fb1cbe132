"""Optional loggers that receive the lines of ``metrics.jsonl``: TensorBoard and Weights & Biases.

Their packages are imported only when a logger is opened.
"""

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable

from didi.errors import DidiError, UsageError, first_line, from_checkout
from didi.files import write_atomically
from didi.process_group import process_group

RUN_ID = "wandb-run-id"  # name of a file in the folder of a run
PROJECT = "didi"
"""W&B project if the environment variable ``WANDB_PROJECT`` is not set."""


@runtime_checkable
class MetricsLogger(Protocol):
    """A destination of training metrics beside ``metrics.jsonl``."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics by name.

        Args:
            step: Number of steps that are done, from 1.
            metrics: Values by name; another call with the same step adds metrics to it.
        """
        ...

    def close(self) -> None:
        """Write what is buffered and release all resources; no other call may follow."""
        ...


class TensorBoardLogger:
    """Writes event files into the subfolder ``tensorboard`` of a run.

    Events of steps after ``begin_step``, which a resumed run computes again, are marked as superseded; TensorBoard does
    not show them.

    Args:
        folder: Folder of the run.
        begin_step: Number of steps that were done when the run was started or resumed.

    Raises:
        UsageError: The package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Path, begin_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=begin_step + 1)  # first step to purge

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``MetricsLogger.log``."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a process that is killed later loses nothing that a checkpoint covers

    def close(self) -> None:
        """See ``MetricsLogger.close``."""
        self._writer.close()


class WandbLogger:
    """Logs to a Weights & Biases run whose id is kept in the file ``wandb-run-id`` of the folder.

    A resumed run continues the W&B run of that id. Metrics are plotted against the logged value ``step``, because W&B
    drops values whose own step counter decreases; steps that a resumed run computes again are logged again.

    The project is ``didi``, unless the environment variable ``WANDB_PROJECT`` names another; other variables of W&B
    apply too, such as ``WANDB_MODE``.

    Args:
        folder: Folder of the run; its name is the name of the W&B run.
        begin_step: Number of steps that were done when the run was started or resumed; not used.

    Raises:
        UsageError: The package ``wandb`` is not installed.
        DidiError: W&B refuses the run, for example because nobody is logged in.
    """

    def __init__(self, folder: Path, begin_step: int) -> None:
        del begin_step
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        id_file = folder / RUN_ID
        if not id_file.is_file():
            write_atomically(id_file, secrets.token_hex(8))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.resolve().name,
                id=id_file.read_text("utf-8").strip(),
                resume="allow",
                dir=folder,
            )
        except wandb.Error as error:
            raise DidiError(
                f"W&B did not start the run ({first_line(error)}): log in with 'wandb login', set WANDB_MODE=offline, "
                "or leave out the logger wandb"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``MetricsLogger.log``."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """See ``MetricsLogger.close``."""
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, int], MetricsLogger]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
"""Loggers by the name that a configuration gives them."""


def open_loggers(names: Sequence[str], folder: Path, begin_step: int) -> list[MetricsLogger]:
    """Open the named loggers for a run.

    Args:
        names: Names in ``LOGGERS``.
        folder: Folder of the run.
        begin_step: Number of steps that were done when the run was started or resumed; 0 for a new run.

    Returns:
        One logger for each name on the main rank, to be closed by the caller; an empty list on the other ranks.

    Raises:
        UsageError: A name is unknown or repeated, or the package of a logger is not installed.
        DidiError: A logger cannot be started.
    """
    if not set(names) <= set(LOGGERS) or len(set(names)) < len(names):
        raise UsageError(f"loggers are different names among {', '.join(LOGGERS)}; got {', '.join(names)}")
    if not process_group().is_main:
        return []
    with ExitStack() as opened:  # closes those that are open if a later one fails
        loggers = []
        for name in names:
            loggers.append(LOGGERS[name](folder, begin_step))
            opened.callback(loggers[-1].close)
        opened.pop_all()
    return loggers


def _missing(name: str, error: ImportError) -> UsageError:
    return UsageError(f"the logger {name} needs the package {name}: {from_checkout(name)} ({first_line(error)})")
