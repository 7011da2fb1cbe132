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
    """The folder in which a run stores its settings, metrics, checkpoints and bundle.

    Attributes:
        path: path of the folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """File of metrics, one JSON object in each line."""
        return self.path / "metrics.jsonl"

    @property
    def settings(self) -> Path:
        """File with the settings of the run."""
        return self.path / "config.yaml"

    @property
    def has_run(self) -> bool:
        """Whether a run has written metrics or a checkpoint here."""
        return self.metrics.is_file() or self.has_checkpoint

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint."""
        return any(self.checkpoints.glob(PATTERN))

    @property
    def bundle(self) -> Path:
        """Folder of the bundle, the result of a finished run."""
        return self.path / "bundle"

    def check(self, config_yaml: str | None = None, *, resume: bool, overwrite: bool = False) -> None:
        """Refuse to resume without a run, and to start a new run that would replace files.

        Args:
            config_yaml: settings of the new run; an existing file with equal settings is accepted, since a run that was
                killed before its first line of metrics leaves one.
            resume: whether to resume the run in this folder.
            overwrite: whether to replace the files of a run in this folder.

        Raises:
            UsageError: ``resume`` is on and the folder has no run; or both are off and the folder has a run, a bundle,
                or different settings.
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
        existing = ["a run"] if self.has_run else []
        existing += [f"{self.bundle.name}/"] if self.bundle.exists() and not self.has_run else []
        if config_yaml is not None and not existing and self.settings.exists():
            existing += [] if self.settings.read_bytes() == config_yaml.encode() else [f"another {self.settings.name}"]
        if existing:
            fix = "add --resume to continue it, --overwrite" if self.has_run else "add --overwrite"
            raise UsageError(
                f"--out names a new folder; {self.path} holds {existing[0]}: {fix} to replace it, or choose another"
            )

    def refuse_deletion(self, *, overwrite: bool, **models: str) -> None:
        """Refuse to overwrite this run if the new one needs its bundle.

        Args:
            overwrite: whether the files of the run are to be replaced.
            models: models that the new run reads, by their role; a role without a model is empty.

        Raises:
            UsageError: one of the models is the bundle of this run.
        """
        for role, model in models.items():
            if overwrite and model and self.bundle.exists() and Path(model).resolve() == self.bundle.resolve():
                raise UsageError(
                    f"--overwrite deletes the bundle in {self.path}, which is the {role}: choose another --out"
                )

    def clear(self) -> None:
        """Delete the files of a run; other files are kept.

        Raises:
            UsageError: ``bundle`` exists and is not a bundle.
        """
        if self.bundle.exists() and not (self.bundle / "bundle.yaml").is_file():
            raise UsageError(f"--overwrite replaces a run and its bundle; {self.bundle} is something else: move it")
        if self.bundle.exists():
            shutil.rmtree(self.bundle)
        optional = [self.path / name for name in (TEACHER_POOL, RUN_ID)]
        for file in (*self.checkpoints.glob(PATTERN), self.metrics, self.settings, *optional):
            file.unlink(missing_ok=True)

    def prepare(
        self,
        config_yaml: str,
        *,
        resume: bool,
        overwrite: bool = False,
        upgrade: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        """Prepare the folder for a new run, or check that a resumed run has the same settings; write the settings.

        Args:
            config_yaml: settings of the run.
            resume: whether to resume the run in this folder.
            overwrite: whether to replace the files of a run in this folder.
            upgrade: converts settings that an earlier version wrote, see ``RunConfig.upgraded``.

        Raises:
            UsageError: see ``check``; or a run is resumed and its settings differ.
        """
        self.check(config_yaml, resume=resume, overwrite=overwrite)
        if overwrite:
            self.clear()
        config_file = self.settings
        if resume and config_file.is_file():
            old, new = _flat_settings(upgrade(read_yaml(config_file))), _flat_settings(yaml.safe_load(config_yaml))
            changed = [
                f"{name} was {old.get(name, 'not there')} and is {new.get(name, 'not there')}"
                for name in {**old, **new}
                if name not in old or name not in new or old[name] != new[name]
            ]
            if changed:
                raise UsageError(
                    f"a resumed run keeps its settings; those of {config_file} differ: {'; '.join(changed)}: give the "
                    "settings it was started with, or another --out"
                )
        write_atomically(config_file, config_yaml)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder; the operating system releases the lock even if this process is killed.

        A new folder is deleted again if the run is refused before it writes anything but its settings.

        Raises:
            UsageError: another process holds the lock.
        """
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise UsageError(
                f"--out names a folder for this run only; another process is running in {self.path}: wait for it, or "
                "choose another folder"
            ) from error
        except UsageError:
            if is_new and {file.name for file in self.path.iterdir()} <= {".lock", self.settings.name}:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def cut_metrics(self, step: int) -> None:
        """Delete the lines of steps after ``step``, which a resumed run writes again.

        Raises:
            UsageError: a line other than the last is not a JSON object with a step. (The last line may be incomplete
                after a kill, and is deleted then.)
        """
        if not self.metrics.is_file():
            return
        kept = []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            line_step = _step_of(line)
            if line_step is None and number < len(lines):
                raise UsageError(
                    f"each line of {self.metrics} is a JSON object with an integer step; line {number} is "
                    f"{reprlib.repr(line)}: remove it"
                )
            if line_step is not None and line_step <= step:
                kept.append(line)
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept))

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append one line of metrics; values that are not finite are written as ``null``."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json_text(row) + "\n")


def _step_of(line: str) -> int | None:
    """Step of a line of metrics; None if the line has no valid step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int else None


def _flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as a flat dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat_settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
