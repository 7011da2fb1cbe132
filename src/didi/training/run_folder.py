"""The folder of a run: its lock, its settings, its metrics."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from didi.errors import UsageError
from didi.files import write_atomically
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
    def has_run(self) -> bool:
        """Whether a run has begun here."""
        return self.metrics.is_file() or any(self.checkpoints.glob(PATTERN))

    @property
    def config(self) -> Path:
        """Settings of the run."""
        return self.path / "config.yaml"

    @property
    def bundle(self) -> Path:
        """What a finished run leaves."""
        return self.path / "bundle"

    def refuse_run(self, config_yaml: str | None = None) -> None:
        """Refuse to start a new run in a folder where it would replace something.

        Args:
            config_yaml: settings of the new run, which a file of equal settings may hold already.

        Raises:
            UsageError: a run is here, or a bundle, or settings that differ.
        """
        found = ["a run"] if self.has_run else []
        found += [f"{self.bundle.name}/"] if self.bundle.exists() and not self.has_run else []
        if config_yaml is not None and not found and self.config.exists():
            found += [] if self.config.read_bytes() == config_yaml.encode() else [f"another {self.config.name}"]
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
        for file in (*self.checkpoints.glob(PATTERN), self.metrics, self.config, *beside):
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
            UsageError: something is here and neither is on, or the settings of the run that is resumed differ.
        """
        if overwrite:
            self.clear()
        elif not resume:
            self.refuse_run(config_yaml)
        config_file, has_run = self.config, self.has_run
        if has_run and config_file.is_file():
            old, new = _settings(current(read_yaml(config_file))), _settings(yaml.safe_load(config_yaml))
            changed = [
                f"{name} was {old.get(name, 'not there')} and is {new.get(name, 'not there')}"
                for name in {**old, **new}
                if old.get(name, _settings) != new.get(name, _settings)
            ]
            if changed:
                raise UsageError(
                    f"--resume keeps a run's settings; those of {config_file} differ: {'; '.join(changed)}: give the "
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
        """Forget the lines of steps after ``step``, which a resumed run writes again."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut in two
                continue
            if row["step"] <= step:
                kept.append(line)
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept))

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append one line of metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and their values."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
