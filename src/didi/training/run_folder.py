"""The folder of a run: its lock, its settings, its metrics."""

import json
import reprlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from didi.errors import UsageError
from didi.files import json_text, write_atomically
from didi.methods.real_source import TEACHER_POOL
from didi.models.untrusted import read_yaml
from didi.training.checkpoint import PATTERN
from didi.training.loggers import RUN_ID


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it writes.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def settings(self) -> Path:
        """Settings of the run."""
        return self.path / "config.yaml"

    @property
    def has_run(self) -> bool:
        """Whether a run has come here as far as a line of metrics or a checkpoint."""
        return self.metrics.is_file() or self.has_checkpoint

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint is kept here."""
        return any(self.checkpoints.glob(PATTERN))

    @property
    def bundle(self) -> Path:
        """What a finished run leaves."""
        return self.path / "bundle"

    def check(self, config_yaml: str | None = None, *, resume: bool, overwrite: bool = False) -> None:
        """Refuse to resume a run where none is, and to start one where it would replace something.

        Args:
            config_yaml: settings of the new run, which a file of equal settings may hold already.
            resume: the run here is continued.
            overwrite: what is here is replaced.

        Raises:
            UsageError: ``resume`` is on and no run is here; or both are off and a run is here, or a bundle, or settings
                that differ. A run that was killed before its first line of metrics has left its settings.
        """
        if overwrite:
            return
        if resume:
            if not self.has_run and not self.settings.is_file():
                raise UsageError(
                    f"--resume continues a run; {self.path} holds none: leave --resume out to start one, or name the "
                    "folder of a run"
                )
            return
        found = ["a run"] if self.has_run else []
        found += [f"{self.bundle.name}/"] if self.bundle.exists() and not self.has_run else []
        if config_yaml is not None and not found and self.settings.exists():
            found += [] if self.settings.read_bytes() == config_yaml.encode() else [f"another {self.settings.name}"]
        if found:
            fix = "add --resume to continue it, --overwrite" if self.has_run else "add --overwrite"
            raise UsageError(
                f"--out names a new folder; {self.path} holds {found[0]}: {fix} to replace it, or choose another"
            )

    def clear(self) -> None:
        """Delete what a run leaves here; other files stay.

        Raises:
            UsageError: ``bundle`` is something other than a bundle.
        """
        if self.bundle.exists() and not (self.bundle / "bundle.yaml").is_file():
            raise UsageError(f"--overwrite replaces a run and its bundle; {self.bundle} is something else: move it")
        if self.bundle.exists():
            shutil.rmtree(self.bundle)
        beside = [self.path / name for name in (TEACHER_POOL, RUN_ID)]
        for file in (*self.checkpoints.glob(PATTERN), self.metrics, self.settings, *beside):
            file.unlink(missing_ok=True)

    def prepare(
        self,
        config_yaml: str,
        *,
        resume: bool,
        overwrite: bool = False,
        current: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        """Start a new run here, or make sure that the run here is the same.

        Args:
            config_yaml: settings of the run.
            resume: whether a run here goes on.
            overwrite: whether a new run replaces what is here.
            current: from settings that an earlier version wrote to those of now.

        Raises:
            UsageError: see ``check``; or a run is resumed and its settings differ.
        """
        self.check(config_yaml, resume=resume, overwrite=overwrite)
        if overwrite:
            self.clear()
        config_file = self.settings
        if resume and config_file.is_file():
            old, new = _settings(current(read_yaml(config_file))), _settings(yaml.safe_load(config_yaml))
            changed = [
                f"{name} was {old.get(name, 'not there')} and is {new.get(name, 'not there')}"
                for name in {**old, **new}
                if old.get(name, _settings) != new.get(name, _settings)
            ]
            if changed:
                raise UsageError(
                    f"a resumed run keeps its settings; those of {config_file} differ: {'; '.join(changed)}: give the "
                    "settings it was started with, or another --out"
                )
        write_atomically(config_file, config_yaml)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running here; the system frees the folder even where this process is killed.

        Raises:
            UsageError: another run is in the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise UsageError(
                f"--out names a folder of its own; another process is running in {self.path}: wait for it, or choose "
                "another"
            ) from error

    def cut_metrics(self, step: int) -> None:
        """Forget the lines of steps after ``step``, which a resumed run writes again.

        Raises:
            UsageError: the file holds a line that no run wrote. The last line may be incomplete after a kill.
        """
        if not self.metrics.is_file():
            return
        kept = []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            at = _step_of(line)
            if at is None and number < len(lines):
                raise UsageError(
                    f"each line of {self.metrics} is a JSON object with a whole number as its step; line {number} is "
                    f"{reprlib.repr(line)}: remove it"
                )
            if at is not None and at <= step:
                kept.append(line)
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept))

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append one line of metrics; a value that is not finite is ``null``."""
        with self.metrics.open("a") as file:
            file.write(json_text(row) + "\n")


def _step_of(line: str) -> int | None:
    """Step of a line of metrics; None where it has none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int else None


def _settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and their values."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
